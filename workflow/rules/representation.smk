# One rule per method, from the METHODS table: methods differ in what they need and in the weights they leave. A trial of
# `search` is the same job in another folder, with settings of its own.
PLACES = {("representation", name): f"{{pretrain}}/{name}/seed{{seed}}" for name in METHODS}
PLACES |= {("search", trial.method): f"{{pretrain}}/{trial.method}/{{trial}}/seed{{seed}}" for trial in TRIALS.values()}
for (kind, name), place in PLACES.items():
    method = METHODS[name]
    kept = SNAPSHOTS[name] if kind == "representation" else []

    rule:
        name:
            f"{kind}_{name}"
        input:
            images="results/data/{pretrain}/images_train.npy",
            meta="results/data/{pretrain}/meta.json",
            diffusion=rules.diffusion.output[:2] if method.diffusion else [],
            labels=multiext("results/data/{pretrain}/", "labels_train.npy", "attributes_train.npy") if method.frozen else [],
        output:
            [f"results/{kind}/{place}/{stem}.safetensors" for stem in (*method.weights, *(f"encoder_step{step}" for step in kept))],
            config=f"results/{kind}/{place}/config.json",
            history=f"results/{kind}/{place}/history.csv",
        params:
            own=own("representation" if method.trained else name, method.unused, name),
            code=digest.digest("frozen" if method.frozen else "representation"),
            method=name,
            place=lambda wildcards, output: Path(output.config).parent.relative_to("results").as_posix(),
            diffusion=lambda w, input: f"--diffusion {Path(input.diffusion[0]).parent.as_posix()}" if input.diffusion else "",
        log:
            f"results/logs/{kind}/{place}.log",
        benchmark:
            f"results/timings/{kind}/{place}.tsv"
        priority: 1  # trainings are the long way; evaluations take the cores that they leave
        threads: THREADS
        resources:
            mem_mb=lambda wildcards, attempt: 8000 * attempt,
            runtime=48 * 60,
            gpu=0,
            gpu_jobs=1,
            nodes=1,
        shell:
            # SLURM signals every process of a job: the trainer shall save its state, the others wait for it.
            "trap '' TERM; diffsiam representation {params.method} --seed {wildcards.seed} "
            "--data $(dirname {input.meta}) {params.diffusion} --out $(dirname {output.config}) "
            "--checkpoint results/checkpoints/{params.place}.pt --events results/tensorboard/{params.place} "
            "--processes {resources.gpu} --nodes {resources.nodes} --params {params.own:q} 2>&1 | tee {log}"
