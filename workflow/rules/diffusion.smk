rule diffusion:
    input:
        images="results/data/{pretrain}/images_train.npy",
        meta="results/data/{pretrain}/meta.json",
    output:
        config="results/diffusion/{pretrain}/config.json",
        weights="results/diffusion/{pretrain}/diffusion_pytorch_model.safetensors",
        training="results/diffusion/{pretrain}/training.json",
        history="results/diffusion/{pretrain}/history.csv",
    params:
        own=lambda w: own(params.of(config, w.pretrain)["diffusion"]["source"])(w),
        code=digest.digest("diffusion"),
        seen=lambda w: diffusion_seen(w.pretrain),
    log:
        "results/logs/diffusion/{pretrain}.log",
    benchmark:
        "results/timings/diffusion/{pretrain}.tsv"
    priority: 2  # most trainings wait for it
    threads: THREADS
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=24 * 60,
        gpu=0,
        gpu_jobs=1,
        nodes=1,
    shell:
        # SLURM signals every process of a job: the trainer shall save its state, the others wait for it.
        "trap '' TERM; diffsiam diffusion --data $(dirname {input.meta}) --out $(dirname {output.config}) "
        "--checkpoint results/checkpoints/diffusion/{wildcards.pretrain}.pt "
        "--events results/tensorboard/diffusion/{wildcards.pretrain} "
        "--processes {resources.gpu} --nodes {resources.nodes} --params {params.own:q} 2>&1 | tee {log}"


# A download is the login node's business; compute nodes may have no network.
if {params.of(config, name)["diffusion"]["source"] for name in [config["pretrain"], *config["overrides"]]} == {"fetch"}:

    localrules:
        diffusion,
