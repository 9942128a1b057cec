# The DAG, from data sets to tables. `snakemake --cores all tables` makes everything that is missing or out of date.
import os

from snakemake.utils import min_version

min_version("9.27")


# Results lie where Snakemake runs (`--directory`); parameters too, or else beside this file.
PARAMS = "params.yaml" if os.path.exists("params.yaml") else f"{workflow.basedir}/params.yaml"


include: "workflow/rules/reader.smk"


configfile: PARAMS


# Rules run in the environment that Snakemake itself runs in; a container is used only with --software-deployment-method.
container: "docker://python:3.11"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/diffusion.smk"
include: "workflow/rules/representation.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/heads.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/pictures.smk"
include: "workflow/rules/generation.smk"
include: "workflow/rules/curve.smk"
include: "workflow/rules/disentanglement.smk"
include: "workflow/rules/metrics.smk"
include: "workflow/rules/targets.smk"
include: "workflow/rules/guard.smk"


localrules:
    all,
    tables,
    data,


rule all:
    default_target: True
    input:
        rules.tables.input,
        rules.metrics.output,
