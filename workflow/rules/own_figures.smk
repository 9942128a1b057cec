# Figures that are not the thesis's: a rule for each row of OWN_FIGURES, which pictures.smk begins and other rules add to.
for word, files in OWN_FIGURES.items():
    shown = ", ".join(dict.fromkeys(Path(file).parts[2] for file in files))

    rule:
        name:
            f"figure_{word}"
        input:
            files,
        output:
            png=entry(word, f"results/figures/{word}.png", shown),
            pdf=f"results/figures/{word}.pdf",
            shows=f"results/figures/{word}.rst",
        params:
            code=digest.digest("figures"),
            word=word,
            dataset=shown,
            files=lambda wildcards, input: [f"{file}={file}" for file in input],
        localrule: True
        log:
            f"results/logs/figures/{word}.log",
        resources:
            mem_mb=2000,
            runtime=10,
        shell:
            "diffsiam figure {params.word} --dataset {params.dataset:q} --input {params.files} --out {output.png} "
            "--params '{{}}' 2>&1 | tee {log}"
