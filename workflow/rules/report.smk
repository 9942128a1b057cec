# Tables 4.1 and 4.2: the same rule over the results of two protocols.
for number, protocol in {"4_1": "linear", "4_2": "fewshot"}.items():

    rule:
        name:
            f"table{number}"
        input:
            results=every(f"results/{protocol}/{{pretrain}}/{{method}}/seed{{seed}}/{{dataset}}.json"),
            meta=expand(f"{DATA}/meta.json", dataset=config["transfer"]),
            config=every(f"{ENCODER}/config.json"),
            reference=local(str(HERE / f"workflow/reference/thesis_table{number}.csv")),
        output:
            csv=report(f"results/table{number}.csv", caption=f"../report/table{number}.rst", category="Tables"),
            md=f"results/table{number}.md",
            tex=f"results/table{number}.tex",
        params:
            own=own("tables"),
            code=digest.digest("tables"),
            number=number,
        log:
            f"results/logs/table{number}.log",
        resources:
            mem_mb=2000,
            runtime=10,
        shell:
            "diffsiam table {params.number} --results {input.results} --meta {input.meta} --config {input.config} "
            "--reference {input.reference:q} --out {output.csv} --params {params.own:q} 2>&1 | tee {log}; cat {output.md}"


rule summary:
    input:
        linear=every("results/linear/{pretrain}/{method}/seed{seed}/{dataset}.json"),
        fewshot=every("results/fewshot/{pretrain}/{method}/seed{seed}/{dataset}.json"),
        reference=[local(str(HERE / f"workflow/reference/thesis_table{number}.csv")) for number in ("4_1", "4_2")],
    output:
        md="results/summary.md",
        paired=report("results/paired.csv", caption="../report/summary.rst", category="Tables"),
        picture=report("results/paired.png", caption="../report/paired.rst", category="Tables"),
        pdf="results/paired.pdf",
    params:
        own=own("tables"),
        code=digest.digest("tables"),
        pretrain=config["pretrain"],
    log:
        "results/logs/summary.log",
    resources:
        mem_mb=2000,
        runtime=10,
    shell:
        "diffsiam summary --linear {input.linear} --fewshot {input.fewshot} --reference {input.reference:q} "
        "--pretrain {params.pretrain} --out {output.md} --params {params.own:q} 2>&1 | tee {log}; cat {output.md}"


# The records of all networks behind the tables.
TRAININGS = every(f"{ENCODER}/config.json")
if any(METHODS[name].diffusion for name in config["methods"]):
    TRAININGS = [f"results/diffusion/{config['pretrain']}/training.json", *TRAININGS]


rule provenance:
    input:
        meta=expand(f"{DATA}/meta.json", dataset=dict.fromkeys([config["pretrain"], *config["transfer"]])),
        trainings=TRAININGS,
        history=[str(Path(file).with_name("history.csv")) for file in TRAININGS],
    output:
        "results/provenance.md",
    params:
        own=own("tables"),
        code=digest.digest("provenance"),
    log:
        "results/logs/provenance.log",
    resources:
        mem_mb=2000,
        runtime=10,
    shell:
        "diffsiam provenance --meta {input.meta} --training {input.trainings} --out {output} --params {params.own:q} 2>&1 | tee {log}"


rule tables:
    input:
        "results/table4_1.csv",
        "results/table4_2.csv",
        "results/summary.md",
        "results/provenance.md",


localrules:
    provenance,
    table4_1,
    table4_2,
    summary,
