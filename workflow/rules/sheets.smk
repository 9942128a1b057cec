# Sheets to judge the tables' encoders by. Of those of the first seed, like all pictures: nearest neighbours, a map and
# segments of test images; of every seed: confusions of the linear probes, accuracy against hours of training.
SHEETS = "results/sheets/{pretrain}/{method}/seed{seed}"
PIXELS = "pixels"  # in place of a method: the images themselves


# Where the tables have no features of the pretraining set.
use rule features as features_sheets with:
    output:
        f"{SHEETS}/features_{{dataset}}.npz",
    log:
        "results/logs/sheets/features/{pretrain}/{method}/seed{seed}/{dataset}.log",
    benchmark:
        "results/timings/sheets/features/{pretrain}/{method}/seed{seed}/{dataset}.tsv"


EXTRACTED = f"{SHEETS}/features_{{pretrain}}.npz"
if config["pretrain"] in (*config["transfer"], *config["disentanglement"]["datasets"]):
    EXTRACTED = "results/features/{pretrain}/{method}/seed{seed}/{pretrain}.npz"
OF_TEST = {
    "features": lambda w: [] if w.method == PIXELS else EXTRACTED.format(**w),
    "arrays": multiext("results/data/{pretrain}/", "images_test.npy", "labels_test.npy", "attributes_test.npy"),
    "meta": "results/data/{pretrain}/meta.json",
}
# `on`: a data set of heads.attributes_on, whose features are those of its table.
OF_ATTRIBUTES = {
    "features": rules.heads_features.output,
    "arrays": multiext("results/data/{on}/", "attributes_train.npy", "attributes_test.npy"),
    "meta": "results/data/{on}/meta.json",
}
KINDS_OF_SHEETS = {"neighbours.npz": OF_TEST, "embedding.npz": OF_TEST, "segments_{on}.json": OF_ATTRIBUTES}

for file, needs in KINDS_OF_SHEETS.items():
    kind = file.split("_")[0].split(".")[0]

    rule:
        name:
            f"sheet_{kind}"
        input:
            **needs,
        output:
            f"{SHEETS}/{file}",
        params:
            own=own(f"sheet_{kind}"),
            code=digest.digest("sheets"),
            kind=kind,
            features=lambda wildcards, input: f"--features {input.features}" if input.features else "",
        wildcard_constraints:
            method="|".join([*METHODS, PIXELS]),
        log:
            f"results/logs/sheets/{{pretrain}}/{{method}}/seed{{seed}}/{file.split('.')[0]}.log",
        benchmark:
            f"results/timings/sheets/{{pretrain}}/{{method}}/seed{{seed}}/{file.split('.')[0]}.tsv"
        threads: 1
        resources:
            mem_mb=lambda wildcards, attempt: 4000 * attempt,
            runtime=lambda wildcards, attempt: 60 * attempt,
        shell:
            "diffsiam sheet {params.kind} {params.features} --data $(dirname {input.meta}) --method {wildcards.method} "
            "--out {output} --params {params.own:q} 2>&1 | tee {log}"


FROZEN = [name for name in config["methods"] if METHODS[name].frozen]
PICTURED = config["figures"]["method"] if config["figures"]["method"] in config["methods"] else config["methods"][-1]
CUT = [name for name in config["methods"] if METHODS[name].segment or METHODS[name].coded]
LINEAR = every("results/linear/{pretrain}/{method}/seed{seed}/{dataset}.json")
TRAINED_IN = [*dict.fromkeys(TRAININGS)]
OWN_SHEETS = {
    "neighbours": of_first(f"{SHEETS}/neighbours.npz", [*dict.fromkeys([PICTURED, *FROZEN]), PIXELS]),
    "embedding": of_first(f"{SHEETS}/embedding.npz", [*config["methods"], PIXELS]),
    "segments_attributes": of_first(f"{SHEETS}/segments_{{on}}.json", CUT, on=HEADS_ON["attributes"]),
    "confusion": LINEAR,
    "accuracy_hours": [*LINEAR, *TRAINED_IN, *(str(Path(file).with_name("history.csv")) for file in TRAINED_IN)],
}
OWN_FIGURES |= OWN_SHEETS


rule sheets:
    input:
        [f"results/figures/{word}.png" for word, files in OWN_SHEETS.items() if files],


localrules:
    sheets,
