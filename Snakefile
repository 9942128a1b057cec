# The DAG, from data sets to tables. `snakemake --cores all tables` makes everything that is missing or out of date.
import os
from importlib import metadata

from snakemake.utils import min_version

min_version("9.27")


# The folder of this file, also where another includes it or uses it as a module.
CHECKOUT = os.path.normpath(workflow.current_basedir.get_path_or_uri(secret_free=True))
if not os.path.isdir(CHECKOUT):
    raise SystemExit(f"{CHECKOUT}: is no folder. Clone it, and name the Snakefile of the clone (config/README.md).")
# Results lie where Snakemake runs (`--directory`); parameters too, or else beside this file.
PARAMS = "params.yaml" if os.path.exists("params.yaml") else f"{CHECKOUT}/params.yaml"


include: "workflow/rules/reader.smk"


# A file of all sections, such as a preset, is taken as it is; one of a few extends params.yaml.
if not WHOLE:

    configfile: PARAMS


# Rules run in the environment that Snakemake itself runs in; only `--software-deployment-method apptainer` asks for the
# image, which `make container` builds. Relative to the working directory: a path with a space is refused even unused.
container: f"resources/diffsiam-{metadata.version('diffsiam')}.sif"


report: "workflow/report/overview.rst"


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
include: "workflow/rules/search.smk"
include: "workflow/rules/disentanglement.smk"
include: "workflow/rules/sheets.smk"
include: "workflow/rules/own_figures.smk"
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
