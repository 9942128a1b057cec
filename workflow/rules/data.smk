rule data:
    output:
        multiext(f"{DATA}/", "images_train.npy", "images_test.npy", "labels_train.npy", "labels_test.npy"),
        meta=f"{DATA}/meta.json",
    params:
        own=own("data"),
        code=digest.digest("data"),
    log:
        "results/logs/data/{dataset}.log",
    benchmark:
        "results/timings/data/{dataset}.tsv"
    resources:
        mem_mb=4000,
        runtime=240,
    shell:
        "diffsiam data {wildcards.dataset} --out $(dirname {output.meta}) "
        "--params {params.own:q} 2>&1 | tee {log}"
