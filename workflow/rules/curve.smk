# Linear accuracy of the encoders that `representation.snapshots` keeps: results/curve.csv and its picture.
CURVE = "results/curve/{pretrain}/{method}/seed{seed}/step{step}/{dataset}"


use rule features as features_snapshot with:
    input:
        encoder=f"{ENCODER}/encoder_step{{step}}.safetensors",
        config=f"{ENCODER}/config.json",
        arrays=multiext(f"{DATA}/", "images_train.npy", "images_test.npy", "labels_train.npy", "labels_test.npy"),
        meta=f"{DATA}/meta.json",
    output:
        temp(f"{CURVE}.npz"),
    log:
        "results/logs/curve/features/{pretrain}/{method}/seed{seed}/step{step}/{dataset}.log",
    benchmark:
        "results/timings/curve/features/{pretrain}/{method}/seed{seed}/step{step}/{dataset}.tsv"


use rule linear as linear_snapshot with:
    input:
        features=rules.features_snapshot.output,
        meta=f"{DATA}/meta.json",
    output:
        f"{CURVE}.json",
    log:
        "results/logs/curve/linear/{pretrain}/{method}/seed{seed}/step{step}/{dataset}.log",
    benchmark:
        "results/timings/curve/linear/{pretrain}/{method}/seed{seed}/step{step}/{dataset}.tsv"


TRAINED = [method for method in config["methods"] if METHODS[method].trained]


rule curve:
    input:
        [
            file
            for name in TRAINED
            for file in expand(
                f"{CURVE}.json",
                pretrain=config["pretrain"],
                method=name,
                seed=config["seeds"],
                step=SNAPSHOTS[name],
                dataset=sorted({config["pretrain"], *config["transfer"]}),
            )
        ]
        if any(SNAPSHOTS[name] for name in TRAINED)
        else "results/curve needs representation.snapshots above 0 and a trained method in params.yaml",
        # The untrained encoder has one point, which needs no snapshot.
        expand(
            "results/linear/{pretrain}/{method}/seed{seed}/{dataset}.json",
            pretrain=config["pretrain"],
            method=[method for method in config["methods"] if not METHODS[method].trained],
            seed=config["seeds"],
            dataset=sorted({config["pretrain"], *config["transfer"]}),
        ),
    output:
        csv="results/curve.csv",
        png=entry("curve", "results/curve.png"),
        pdf="results/curve.pdf",
    params:
        code=digest.digest("curve"),
        pretrain=config["pretrain"],
    log:
        "results/logs/curve.log",
    resources:
        mem_mb=2000,
        runtime=10,
    shell:
        "diffsiam curve --linear {input} --pretrain {params.pretrain} --out {output.csv} --params '{{}}' 2>&1 | tee {log}"


localrules:
    curve,
