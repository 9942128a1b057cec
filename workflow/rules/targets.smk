# One name per level of the DAG, and per method where a level repeats: the stages of dvc.yaml ask for these.
# A level is complete with every file that its rules leave, whether another rule reads it or not.
from snakemake.io import strip_wildcard_constraints

LEAVES = {rule.name: [strip_wildcard_constraints(file) for file in rule.output] for rule in workflow.rules}
DATA_SETS = {config["pretrain"], *config["transfer"], *config["disentanglement"]["datasets"]}
DATA_SETS = sorted(DATA_SETS.union(HEADS_ON["attributes"], HEADS_ON["regression"]))
# Where the tables' encoders are scored against factors, too, their features lie in the same folder.
SCORED = [name for name in config["disentanglement"]["datasets"] if name == config["pretrain"]]
EVERY = {"pretrain": config["pretrain"], "seed": config["seeds"]}


# Takes the fingerprints of all sources that the data sets and the diffusion model are made of, and makes nothing.
rule sources:
    params:
        [data_seen(name) for name in DATA_SETS],
        [diffusion_seen(name) for name in [config["pretrain"], *config["disentanglement"]["datasets"]]],


localrules:
    sources,


rule data_sets:
    input:
        expand(LEAVES["data"], dataset=DATA_SETS),


rule diffusion_model:
    input:
        expand(LEAVES["diffusion"], pretrain=config["pretrain"]),


for name in config["methods"]:

    rule:
        name:
            f"representation@{name}"
        input:
            expand(LEAVES[f"representation_{name}"], **EVERY),

    for level in ("features", "linear", "fewshot"):

        rule:
            name:
                f"{level}@{name}"
            input:
                expand(LEAVES[level], **EVERY, method=name, dataset=config["transfer"] + (SCORED if level == "features" else [])),


for name in config["disentanglement"]["datasets"]:

    rule:
        name:
            f"disentanglement@{name}"
        input:
            expand(SCORES, pretrain=name, method=FACTORS["method"], seed=config["seeds"]),
