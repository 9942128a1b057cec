rule features:
    input:
        encoder=f"{ENCODER}/encoder.safetensors",
        config=f"{ENCODER}/config.json",
        arrays=multiext(f"{DATA}/", "images_train.npy", "images_test.npy", "labels_train.npy", "labels_test.npy"),
        meta=f"{DATA}/meta.json",
    output:
        "results/features/{pretrain}/{method}/seed{seed}/{dataset}.npz",
    params:
        own=own("features"),
        code=digest.digest("features"),
        mirror="",
    log:
        "results/logs/features/{pretrain}/{method}/seed{seed}/{dataset}.log",
    benchmark:
        "results/timings/features/{pretrain}/{method}/seed{seed}/{dataset}.tsv"
    threads: THREADS
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
        gpu_jobs=1,
    shell:
        "diffsiam features --encoder {input.encoder} --data $(dirname {input.meta}) {params.mirror} --out {output} "
        "--params {params.own:q} 2>&1 | tee {log}"


rule linear:
    input:
        features=rules.features.output,
        meta=f"{DATA}/meta.json",
    output:
        "results/linear/{pretrain}/{method}/seed{seed}/{dataset}.json",
    params:
        own=own("linear"),
        code=digest.digest("linear"),
    log:
        "results/logs/linear/{pretrain}/{method}/seed{seed}/{dataset}.log",
    benchmark:
        "results/timings/linear/{pretrain}/{method}/seed{seed}/{dataset}.tsv"
    threads: 1  # many jobs at a time; their solvers scale less well than their number
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    shell:
        "diffsiam linear --features {input.features} --meta {input.meta} --out {output} "
        "--method {wildcards.method} --seed {wildcards.seed} --params {params.own:q} 2>&1 | tee {log}"


rule fewshot:
    input:
        features=rules.features.output,
        meta=f"{DATA}/meta.json",
    output:
        "results/fewshot/{pretrain}/{method}/seed{seed}/{dataset}.json",
    params:
        own=own("fewshot"),
        code=digest.digest("fewshot"),
    log:
        "results/logs/fewshot/{pretrain}/{method}/seed{seed}/{dataset}.log",
    benchmark:
        "results/timings/fewshot/{pretrain}/{method}/seed{seed}/{dataset}.tsv"
    threads: 1  # many jobs at a time; their solvers scale less well than their number
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    shell:
        "diffsiam fewshot --features {input.features} --meta {input.meta} --out {output} "
        "--method {wildcards.method} --seed {wildcards.seed} --params {params.own:q} 2>&1 | tee {log}"
