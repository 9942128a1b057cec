# One name per level of the DAG, and per method where a level repeats: the stages of dvc.yaml ask for these.
# A level is complete with every file that its rules leave, whether another rule reads it or not.
from snakemake.io import strip_wildcard_constraints

LEAVES = {rule.name: [strip_wildcard_constraints(file) for file in rule.output] for rule in workflow.rules}
PREPARED = sorted({config["pretrain"], *config["transfer"], *HEADS_ON["attributes"], *HEADS_ON["regression"]})
EVERY = {"pretrain": config["pretrain"], "seed": config["seeds"]}


# Takes the fingerprints of all sources that the data sets and the diffusion model are made of, and makes nothing.
rule sources:
    params:
        [data_seen(name) for name in PREPARED],
        diffusion_seen(config["pretrain"]),


localrules:
    sources,


rule data_sets:
    input:
        expand(LEAVES["data"], dataset=PREPARED),


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
                expand(LEAVES[level], **EVERY, method=name, dataset=config["transfer"]),
