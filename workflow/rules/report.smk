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
            csv=entry(f"table{number}", f"results/table{number}.csv"),
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
        paired=entry("summary", "results/paired.csv"),
        picture=entry("paired", "results/paired.png"),
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


# Results of other targets are shown where they are there, and are no input: the page forces none of them. It is made anew
# when one has come, gone or changed since.
rule page:
    input:
        tables=["results/table4_1.csv", "results/table4_1.md", "results/table4_2.csv", "results/table4_2.md"],
        summary=["results/summary.md", "results/paired.png", "results/provenance.md"],
        captions=[local(str(HERE / "workflow/report" / name)) for name in ("index.html.jinja", *(f"{name}.rst" for name in entries.NAMES))],
    output:
        report(
            "results/index.html",
            caption="../report/page.rst",
            category="All on one page",
            labels={"shows": "Every table and figure, with what is claimed of it", "file": "results/index.html"},
        ),
    params:
        own=own("tables"),
        code=digest.digest("page"),
        pretrain=config["pretrain"],
        beside=lambda wildcards: [*entries.beside(Path("results"))],
    log:
        "results/logs/page.log",
    resources:
        mem_mb=2000,
        runtime=10,
    shell:
        "diffsiam page --results $(dirname {input.tables[0]}) --pretrain {params.pretrain} --out {output} --params {params.own:q} 2>&1 | tee {log}"


rule tables:
    input:
        "results/table4_1.csv",
        "results/table4_2.csv",
        "results/summary.md",
        "results/provenance.md",
        "results/index.html",


localrules:
    page,
    provenance,
    table4_1,
    table4_2,
    summary,
