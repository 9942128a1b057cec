# The generative half: attribute classifiers, pictures and numbers per data set and method, and the figures.
for file, needs in KINDS.items():
    kind = file.split("_")[0].split(".")[0]

    rule:
        name:
            f"generate_{kind}"
        input:
            **needs,
            test=TEST,
            diffusion=rules.diffusion.output[:2],
        output:
            f"{MADE}/{file}",
        params:
            own=own(kind),
            code=digest.digest("generation"),
            kind=kind,
            options=options,
            weights=weights_seen if kind == "numbers" else "",
        log:
            f"results/logs/generation/{{pretrain}}/{file.split('.')[0]}.log",
        benchmark:
            f"results/timings/generation/{{pretrain}}/{file.split('.')[0]}.tsv"
        threads: THREADS
        resources:
            mem_mb=8000,
            runtime=12 * 60,
            gpu=0,
            gpu_jobs=1,
        shell:
            "diffsiam generate {params.kind} --data $(dirname {input.test[0]}) "
            "--diffusion $(dirname {input.diffusion[0]}) {params.options} --out {output} "
            "--params {params.own:q} 2>&1 | tee {log}"


for dataset, stems in CLASSIFIERS.items():

    rule:
        name:
            f"probmask_{dataset}"
        input:
            encoder=f"results/representation/{dataset}/{{method}}/seed{{seed}}/encoder_ema.safetensors",
            config=f"results/representation/{dataset}/{{method}}/seed{{seed}}/config.json",
            arrays=expand(f"results/data/{dataset}/{{kind}}_{{part}}.npy", kind=["images", "attributes"], part=["train", "test"]),
            meta=f"results/data/{dataset}/meta.json",
        output:
            expand(
                "results/probmask/{dataset}/{{method}}/seed{{seed}}/{stem}.{suffix}",
                dataset=dataset,
                stem=stems,
                suffix=["safetensors", "json"],
            ),
        params:
            own=json.dumps(stages.share(config, "probmask", dataset)),
            code=digest.digest("probmask"),
            folder=lambda wildcards, output: Path(output[0]).parent.as_posix(),
        log:
            f"results/logs/probmask/{dataset}/{{method}}/seed{{seed}}.log",
        benchmark:
            f"results/timings/probmask/{dataset}/{{method}}/seed{{seed}}.tsv"
        threads: THREADS
        resources:
            mem_mb=8000,
            runtime=120,
            gpu_jobs=1,
        shell:
            "diffsiam probmask --encoder {input.encoder} --data $(dirname {input.meta}) --out {params.folder} "
            "--params {params.own:q} 2>&1 | tee {log}"


rule pixel_classifier:
    input:
        arrays=expand("results/data/{{pretrain}}/{kind}_{part}.npy", kind=["images", "attributes"], part=["train", "test"]),
        meta="results/data/{pretrain}/meta.json",
    output:
        weights=f"{MADE}/classifier.safetensors",
        facts=f"{MADE}/classifier.json",
    params:
        own=own("classifier"),
        code=digest.digest("generation"),
    log:
        "results/logs/generation/{pretrain}/classifier.log",
    benchmark:
        "results/timings/generation/{pretrain}/classifier.tsv"
    threads: THREADS
    resources:
        mem_mb=8000,
        runtime=120,
        gpu_jobs=1,
    shell:
        "diffsiam generate classifier --data $(dirname {input.meta}) --out {output.weights} "
        "--params {params.own:q} 2>&1 | tee {log}"


rule attributes:
    output:
        "results/attributes/{dataset}.csv",
    params:
        own=own("attributes"),
        code=digest.digest("attributes"),
        seen=lambda w: attributes_seen(w.dataset),
        names=lambda w: [row["name"] for row in config["probmask"]["attributes"] if row["dataset"] == w.dataset],
    log:
        "results/logs/attributes/{dataset}.log",
    threads: THREADS
    resources:
        mem_mb=8000,
        runtime=12 * 60,
        gpu_jobs=1,
    shell:
        "diffsiam attributes {wildcards.dataset} --names {params.names:q} --out {output} "
        "--params {params.own:q} 2>&1 | tee {log}"


for number, dataset in FIGURES.items():

    rule:
        name:
            f"fig{number}"
        input:
            figure_inputs(number, dataset).values(),
        output:
            png=entry(f"fig{number}", f"results/figures/fig{number}.png", dataset),
            pdf=f"results/figures/fig{number}.pdf",
            shows=f"results/figures/fig{number}.rst",
        params:
            own=json.dumps(stages.share(config, "figure4_2" if number == "4_2" else "figure", dataset)),
            code=digest.digest("figures"),
            number=number,
            dataset=dataset,
            files=[f"{name}={file}" for name, file in figure_inputs(number, dataset).items()],
        localrule: True
        log:
            f"results/logs/figures/fig{number}.log",
        resources:
            mem_mb=2000,
            runtime=10,
        shell:
            "diffsiam figure {params.number} --dataset {params.dataset} --input {params.files} --out {output.png} "
            "--params {params.own:q} 2>&1 | tee {log}"


rule numbers:
    input:
        expand(
            "results/generation/{dataset}/numbers_{method}.csv",
            dataset=sorted({dataset for number, dataset in FIGURES.items() if number in {f"4_{i}" for i in range(1, 8)}}),
            method=config["generation"]["methods"],
        ),
    output:
        csv=entry("numbers", "results/generation.csv", "all"),
        md="results/generation.md",
    params:
        code=digest.digest("numbers"),
    log:
        "results/logs/numbers.log",
    resources:
        mem_mb=1000,
        runtime=10,
    shell:
        "diffsiam numbers --results {input} --out {output.csv} --params '{{}}' 2>&1 | tee {log}"


rule figures:
    input:
        expand("results/figures/fig{number}.{suffix}", number=FIGURES, suffix=["png", "pdf", "rst"]),
        rules.numbers.output,
        "results/figures/frozen_grid.png" if OWN_FIGURES["frozen_grid"] else [],


localrules:
    figures,
    numbers,
