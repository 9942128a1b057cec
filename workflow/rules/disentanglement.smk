# Codes against known factors: encoders trained on each data set of disentanglement.datasets, by disentanglement.methods.
SCORES = "results/disentanglement/{pretrain}/{method}/seed{seed}.json"
FACTORS = {"pretrain": config["disentanglement"]["datasets"], "method": config["disentanglement"]["methods"]}


rule disentangle:
    input:
        features="results/features/{pretrain}/{method}/seed{seed}/{pretrain}.npz",
        meta="results/data/{pretrain}/meta.json",
        config=f"{ENCODER}/config.json",
    output:
        SCORES,
    params:
        own=own("disentanglement"),
        code=digest.digest("disentanglement"),
    log:
        "results/logs/disentanglement/{pretrain}/{method}/seed{seed}.log",
    benchmark:
        "results/timings/disentanglement/{pretrain}/{method}/seed{seed}.tsv"
    threads: THREADS  # factors side by side
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    shell:
        "diffsiam disentanglement --features {input.features} --meta {input.meta} --config {input.config} --out {output} "
        "--method {wildcards.method} --seed {wildcards.seed} --params {params.own:q} 2>&1 | tee {log}"


rule table_disentanglement:
    input:
        results=expand(SCORES, **FACTORS, seed=config["seeds"]),
        reference=local(str(HERE / "workflow/reference/disdiff_tables.csv")),
    output:
        csv=entry("table_disentanglement", "results/table_disentanglement.csv"),
        md="results/table_disentanglement.md",
        tex="results/table_disentanglement.tex",
    params:
        code=digest.digest("disentangled"),
    log:
        "results/logs/table_disentanglement.log",
    resources:
        mem_mb=2000,
        runtime=10,
    shell:
        "diffsiam disentangled --results {input.results} --reference {input.reference:q} --out {output.csv} "
        "--params '{{}}' 2>&1 | tee {log}; cat {output.md}"


# Of the first seed, like all pictures; by the rule pixel_classifier's network.
rule swaps:
    input:
        trained=NETWORKS,
        diffusion=rules.diffusion.output[:2],
        classifier=f"{MADE}/classifier.safetensors",
        facts=f"{MADE}/classifier.json",
        images="results/data/{pretrain}/images_train.npy",
        meta="results/data/{pretrain}/meta.json",
    output:
        arrays=f"{MADE}/swaps_{{method}}.npz",
        numbers=f"{MADE}/swaps_{{method}}.csv",
    params:
        own=own("swaps"),
        code=digest.digest("swaps"),
        trained=lambda wildcards, input: Path(input.trained[0]).parent.as_posix(),
    log:
        "results/logs/generation/{pretrain}/swaps_{method}.log",
    benchmark:
        "results/timings/generation/{pretrain}/swaps_{method}.tsv"
    threads: THREADS
    resources:
        mem_mb=8000,
        runtime=12 * 60,
        gpu_jobs=1,
    shell:
        "diffsiam generate swaps --data $(dirname {input.meta}) --diffusion $(dirname {input.diffusion[0]}) "
        "--representation {params.trained} --classifier {input.classifier} --out {output.arrays} "
        "--params {params.own:q} 2>&1 | tee {log}"


SWAPPED = [name for name in FACTORS["method"] if METHODS[name].decoder]
# Of the first seed too: what a code carries is not the same code's from seed to seed.
OWN_FIGURES["factors"] = expand(SCORES, **FACTORS, seed=config["seeds"][0])
OWN_FIGURES["swaps"] = expand(f"{MADE}/swaps_{{method}}.npz", pretrain=FACTORS["pretrain"], method=SWAPPED)


rule disentanglement:
    input:
        rules.table_disentanglement.output,
        [f"results/figures/{word}.png" for word in ("factors", "swaps") if OWN_FIGURES[word]],


localrules:
    table_disentanglement,
    disentanglement,
