# What the figures need, by data set, method and figure; the rules that make it are in generation.smk.
FIGURES = {name.removeprefix("fig"): dataset for name, dataset in config["figures"]["datasets"].items()}
CLASSIFIERS = {}  # data set -> file stems of its attribute classifiers, rows of the figures in order
for row in config["probmask"]["attributes"]:
    CLASSIFIERS.setdefault(row["dataset"], []).extend(params.Attribute(**row).stems)
SHOWN = f"seed{config['seeds'][0]}"  # the trainings that figures show
MADE = "results/generation/{pretrain}"
TEST = multiext("results/data/{pretrain}/", "images_test.npy", "attributes_test.npy", "meta.json")
NETWORKS = multiext(
    f"results/representation/{{pretrain}}/{{method}}/{SHOWN}/", "config.json", "encoder_ema.safetensors", "decoder_ema.safetensors"
)


def classifiers(wildcards):
    """The attribute classifiers of a trained method, masked and on all dimensions in turn."""
    folder = f"results/probmask/{wildcards.pretrain}/{wildcards.method}/{SHOWN}"
    return [f"{folder}/{stem}.safetensors" for stem in CLASSIFIERS.get(wildcards.pretrain, [])]


def judge(wildcards):
    """The classifier on pixels that tells what an edit changed; none where images have no attributes."""
    return [f"{MADE}/classifier.safetensors"] if wildcards.pretrain in CLASSIFIERS else []


# What each kind of pictures or numbers needs besides the test images and the diffusion model.
KINDS = {
    "denoise.npz": {},
    "counterfactual_{method}.npz": {"trained": NETWORKS},
    "manipulation_{method}.npz": {"trained": NETWORKS, "probmask": classifiers},
    "numbers_{method}.csv": {
        "trained": NETWORKS,
        "probmask": classifiers,
        "classifier": judge,
        "labels": "results/data/{pretrain}/attributes_train.npy",
    },
}


def weights_seen(wildcards):
    """The metrics whose published weights are here, which give the numbers more rows; where none is, those seen before."""
    here, before = " ".join(hub.usable()), (fingerprint.MEMORY / "weights.json").exists()
    return seen("weights", lambda: here or (None if before else "none"))


def options(wildcards, input):
    """The files of a job as the command takes them."""
    words = ["--representation", Path(input.trained[0]).parent.as_posix()] if input.get("trained") else []
    words += ["--probmask", *input.probmask] if input.get("probmask") else []
    return " ".join(words + (["--classifier", *input.classifier] if input.get("classifier") else []))


def made(file, dataset, methods):
    """Pictures by method."""
    return {method: f"results/generation/{dataset}/{file}_{method}.npz" for method in methods}


def figure_inputs(number, dataset):
    """What a figure is drawn from, by the name that the command takes it under."""
    trained = f"results/representation/{dataset}/{{}}/{SHOWN}"
    own, all_methods = config["figures"]["method"], config["generation"]["methods"]
    match number:
        case "1_1":
            return {"frozen": f"results/generation/{dataset}/denoise.npz"}
        case "3_1":
            return {"representation": f"{trained.format(own)}/config.json", "diffusion": f"results/diffusion/{dataset}/config.json"}
        case "4_1":
            return made("counterfactual", dataset, [own])
        case "4_2" | "4_3" | "4_4":
            return made("counterfactual", dataset, all_methods)
        case "4_5" | "4_6" | "4_7":
            return made("manipulation", dataset, all_methods)
        case "4_8":
            return {"representation": f"{trained.format(own)}/config.json"}
        case "4_9":
            return {name: f"{trained.format(name)}/history.csv" for name in ("diffsiam_hier", "diffsiam_hier_detach")}


# Figures that are not the thesis's, by the word that names their file: what each is drawn from; nothing, and it is not made.
OWN_FIGURES = {
    "frozen_grid": expand(f"{ENCODER}/config.json", pretrain=config["pretrain"], method=[name for name in config["methods"] if METHODS[name].frozen], seed=config["seeds"][0]),
}
if config["frozen_dm"]["block"]:  # given, not chosen
    OWN_FIGURES["frozen_grid"] = []
