# One rule per method, from the METHODS table: methods differ in what they need and in the weights they leave.
for name, method in METHODS.items():

    rule:
        name:
            f"representation_{name}"
        input:
            images="results/data/{pretrain}/images_train.npy",
            meta="results/data/{pretrain}/meta.json",
            diffusion=rules.diffusion.output[:2] if method.diffusion else [],
            labels=multiext("results/data/{pretrain}/", "labels_train.npy", "attributes_train.npy") if method.frozen else [],
        output:
            expand("results/representation/{{pretrain}}/{method}/seed{{seed}}/{stem}.safetensors", method=name, stem=[*method.weights, *(f"encoder_step{step}" for step in SNAPSHOTS if method.trained)]),
            config=f"results/representation/{{pretrain}}/{name}/seed{{seed}}/config.json",
            history=f"results/representation/{{pretrain}}/{name}/seed{{seed}}/history.csv",
        params:
            own=own("representation" if method.trained else name, method.unused),
            code=digest.digest("frozen" if method.frozen else "representation"),
            method=name,
            diffusion=lambda w, input: f"--diffusion {Path(input.diffusion[0]).parent.as_posix()}" if input.diffusion else "",
        log:
            f"results/logs/representation/{{pretrain}}/{name}/seed{{seed}}.log",
        benchmark:
            f"results/timings/representation/{{pretrain}}/{name}/seed{{seed}}.tsv"
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
            "--checkpoint results/checkpoints/representation/{wildcards.pretrain}/{params.method}/seed{wildcards.seed}.pt "
            "--events results/tensorboard/representation/{wildcards.pretrain}/{params.method}/seed{wildcards.seed} "
            "--processes {resources.gpu} --nodes {resources.nodes} --params {params.own:q} 2>&1 | tee {log}"
