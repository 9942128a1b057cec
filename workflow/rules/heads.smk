# DiTi's evaluations: one linear layer on features of the averaged encoders for all labels of a data set; a table of them.
# `on`: the data set whose labels are predicted. Its own features, not those of evaluation.smk: of other weights, of data
# sets without classes too, and with the mirror images that a head is trained on.
HEADS_ON = {"attributes": config["heads"]["attributes_on"], "regression": config["heads"]["regression_on"]}
HEADS = "results/heads/{pretrain}/{method}/seed{seed}"
FLOORS = "results/heads/floors"
LABELS = {"attributes": "attributes", "regression": "targets"}


wildcard_constraints:
    on="[A-Za-z0-9]+",


use rule features as heads_features with:
    input:
        encoder=f"{ENCODER}/encoder_ema.safetensors",
        config=f"{ENCODER}/config.json",
        arrays=multiext("results/data/{on}/", "images_train.npy", "images_test.npy", "labels_train.npy", "labels_test.npy"),
        meta="results/data/{on}/meta.json",
    output:
        f"{HEADS}/{{on}}.npz",
    params:
        mirror=lambda w: "--mirror" if w.on in HEADS_ON["attributes"] and sources.DATASETS[w.on].mirror else "",
    log:
        "results/logs/heads/features/{pretrain}/{method}/seed{seed}/{on}.log",
    benchmark:
        "results/timings/heads/features/{pretrain}/{method}/seed{seed}/{on}.tsv"


for protocol, kind in LABELS.items():

    rule:
        name:
            f"heads_{protocol}"
        input:
            features=rules.heads_features.output,
            labels=multiext("results/data/{on}/", f"{kind}_train.npy", f"{kind}_test.npy"),
            meta="results/data/{on}/meta.json",
        output:
            f"{HEADS}/{protocol}_{{on}}.json",
        params:
            own=own(f"heads_{protocol}"),
            code=digest.digest("heads"),
            protocol=protocol,
        log:
            f"results/logs/heads/{protocol}/{{pretrain}}/{{method}}/seed{{seed}}/{{on}}.log",
        benchmark:
            f"results/timings/heads/{protocol}/{{pretrain}}/{{method}}/seed{{seed}}/{{on}}.tsv"
        threads: 1
        resources:
            mem_mb=lambda wildcards, attempt: 4000 * attempt,
            runtime=lambda wildcards, attempt: 60 * attempt,
        shell:
            "diffsiam heads {params.protocol} --features {input.features} --data $(dirname {input.meta}) --out {output} "
            "--method {wildcards.method} --seed {wildcards.seed} --params {params.own:q} 2>&1 | tee {log}"

    rule:
        name:
            f"heads_floors_{protocol}"
        input:
            images=multiext("results/data/{on}/", "images_train.npy", "images_test.npy"),
            labels=multiext("results/data/{on}/", f"{kind}_train.npy", f"{kind}_test.npy"),
            meta="results/data/{on}/meta.json",
        output:
            f"{FLOORS}/{protocol}_{{on}}.json",
        params:
            own=own(f"heads_{protocol}"),
            code=digest.digest("heads"),
            protocol=protocol,
        log:
            f"results/logs/heads/floors/{protocol}/{{on}}.log",
        benchmark:
            f"results/timings/heads/floors/{protocol}/{{on}}.tsv"
        threads: 1
        resources:
            mem_mb=lambda wildcards, attempt: 4000 * attempt,
            runtime=lambda wildcards, attempt: 60 * attempt,
        shell:
            "diffsiam heads {params.protocol} --data $(dirname {input.meta}) --out {output} --method pixels "
            "--params {params.own:q} 2>&1 | tee {log}"


# The floors' results and every encoder's.
HEADS_ASKED = [f"{protocol}_{on}.json" for protocol, datasets in HEADS_ON.items() for on in datasets]


rule heads_table:
    input:
        results=[f"{folder}/{name}" for folder in (FLOORS, *every(HEADS)) for name in HEADS_ASKED],
        config=expand(f"{ENCODER}/config.json", pretrain=config["pretrain"], method=config["methods"], seed=config["seeds"]),
        meta=expand(f"{DATA}/meta.json", dataset=sorted({on for datasets in HEADS_ON.values() for on in datasets})),
        reference=local(str(HERE / "workflow/reference/diti_attributes.csv")),
    output:
        csv=entry("table_attributes", "results/table_attributes.csv"),
        md="results/table_attributes.md",
        tex="results/table_attributes.tex",
        paired="results/paired_attributes.csv",
    params:
        own=own("heads_table"),
        code=digest.digest("heads_table"),
        pretrain=config["pretrain"],
    log:
        "results/logs/heads/table.log",
    resources:
        mem_mb=2000,
        runtime=10,
    shell:
        "diffsiam table attributes --results {input.results} --meta {input.meta} --config {input.config} "
        "--reference {input.reference:q} --pretrain {params.pretrain} --out {output.csv} --params {params.own:q} "
        "2>&1 | tee {log}; cat {output.md}"


rule attributes_tables:
    input:
        rules.heads_table.output,


localrules:
    attributes_tables,
    heads_table,
