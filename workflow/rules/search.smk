# Settings that are tried on validation images: results/search.csv. A trial trains by a rule of representation.smk; the
# probe is the tables' own, of which the table reads what it says of validation images alone.
TRIED = "results/search/{pretrain}/{method}/{trial}/seed{seed}"


use rule features as features_trial with:
    input:
        encoder=f"{TRIED}/encoder.safetensors",
        config=f"{TRIED}/config.json",
        arrays=multiext(f"{DATA}/", "images_train.npy", "images_test.npy", "labels_train.npy", "labels_test.npy"),
        meta=f"{DATA}/meta.json",
    output:
        temp(f"{TRIED}/features_{{dataset}}.npz"),
    log:
        "results/logs/search/features/{pretrain}/{method}/{trial}/seed{seed}/{dataset}.log",
    benchmark:
        "results/timings/search/features/{pretrain}/{method}/{trial}/seed{seed}/{dataset}.tsv"


use rule linear as linear_trial with:
    input:
        features=rules.features_trial.output,
        meta=f"{DATA}/meta.json",
    output:
        f"{TRIED}/linear_{{dataset}}.json",
    log:
        "results/logs/search/linear/{pretrain}/{method}/{trial}/seed{seed}/{dataset}.log",
    benchmark:
        "results/timings/search/linear/{pretrain}/{method}/{trial}/seed{seed}/{dataset}.tsv"


TRIED_HERE = [
    TRIED.format(pretrain=config["pretrain"], method=trial.method, trial=trial.name, seed=seed)
    for trial in TRIALS.values()
    for seed in config["search"]["seeds"]
]


rule search:
    input:
        linear=[f"{folder}/linear_{config['pretrain']}.json" for folder in TRIED_HERE] or "results/search needs an entry in search.grid of params.yaml",
        config=[f"{folder}/{file}" for folder in TRIED_HERE for file in ("config.json", "history.csv")],
        meta=f"results/data/{config['pretrain']}/meta.json",
    output:
        csv="results/search.csv",
        md=entry("search", "results/search.md"),
    params:
        code=digest.digest("search"),
    log:
        "results/logs/search.log",
    resources:
        mem_mb=1000,
        runtime=10,
    shell:
        "diffsiam search --linear {input.linear} --meta {input.meta} --out {output.csv} --params '{{}}' 2>&1 | tee {log}; cat {output.md}"


localrules:
    search,
