# What `dvc metrics`, `dvc plots` and `dvc exp show` read: the tables' numbers and curves in the shapes that DVC takes.
rule metrics:
    input:
        linear=every("results/linear/{pretrain}/{method}/seed{seed}/{dataset}.json"),
        fewshot=every("results/fewshot/{pretrain}/{method}/seed{seed}/{dataset}.json"),
        history=every(f"{ENCODER}/history.csv"),
        script=local(str(HERE / "workflow/scripts/metrics.py")),
    output:
        metrics="results/metrics.json",
        accuracy="results/plots/accuracy.csv",
        loss="results/plots/loss.csv",
        validation="results/plots/validation.csv",
    log:
        "results/logs/metrics.log",
    resources:
        mem_mb=1000,
        runtime=10,
    shell:
        "python {input.script:q} --linear {input.linear} --fewshot {input.fewshot} --history {input.history} "
        "--metrics {output.metrics} --accuracy {output.accuracy} --loss {output.loss} --validation {output.validation} "
        "2>&1 | tee {log}"


localrules:
    metrics,
