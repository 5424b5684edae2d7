"""Text to image: a latent diffusion that reads prompts, and a posterior that keeps to them.

    python experiments/run.py --config=configs/text_to_image.py                     "a red eight", six minutes of a core
    python experiments/run.py --config=configs/text_to_image.py --config.prompt="two red twos"
    python experiments/run.py --config=configs/text_to_image.py:prompts             for four rare prompts; not measured
    python experiments/run.py --config=configs/text_to_image.py:sweep               reward and diversity; not measured
    python experiments/run.py --config=configs/text_to_image.py:smoke               the whole path in about a minute

What the first has learned is shipped, as a LoRA of diffusers, and can be started from:
--config.posterior.adapters=weights/text_to_image/lora.

Needs pip install -e ".[text]", for the tokenizer. The default prior, coloured digits, is shipped as a pipeline of
diffusers and was made in the order vae, text, prior, reward by

    python experiments/run.py --config=configs/text_to_image.py:vae --mode=pretrain

and so on for :text, :prior and :reward; each says how to put what it made where the next one reads it. (Of the shipped
ones vae, text and prior were resumed on a shortened schedule: a new training is alike, and not equal.)

    python experiments/run.py --config=configs/text_to_image.py:sd15                by hub id; for an accelerator

or from a folder, by --config.prior.folder=FOLDER. A reward of your own is a function (images, prompts) -> scores; as no
bound of it is known, no path can be accepted, here and with the models below:

    --config.behaviour.accepted=0
    --config.reward.terms.function=1 --config.reward.terms.contrastive=0 --config.reward.function=module:function

CLIP's score is a folder or a hub id, and so is PickScore, whose weights are a CLIP model's; these, the aesthetic
predictor and ImageReward need .[lm] :

    --config.reward.terms.clip=1 --config.reward.terms.contrastive=0 --config.reward.clip=yuvalkirstain/PickScore_v1
    --config.reward.terms.image_reward=1 --config.reward.terms.contrastive=0 --config.reward.image_reward=FOLDER
"""

from configs.base import base, check_variant

STAGES = {"vae": (1_200, 32), "text": (260, 64), "prior": (1_400, 64), "reward": (400, 64)}  # Steps and batch.
VARIANTS = ("", "prompts", "sweep", *STAGES, "sd15", "smoke")
SWEEP = (0.01, 0.1, 1.0, 10.0)  # The beta of the paper's table H.1.


def get_config(variant: str = ""):
    check_variant("configs/text_to_image.py", variant, VARIANTS)
    config = base()
    config.domain = "text_to_image"
    config.prompt = "a red eight"  # Several, with one posterior for all, are separated by |.
    config.prior = {"folder": "weights/text_to_image", "guidance": 2.0}  # 1: the plain conditional prediction.
    config.prior.remat = False  # Whether a gradient recomputes the U-Net's blocks instead of keeping what is in them.
    config.process.num_steps = 20
    config.process.min_std = 0.1
    # log r is the sum of terms times their weights: log p(prompt | image), minus kilobytes as JPEG, the scores of a
    # CLIP model, of an aesthetic predictor and of ImageReward, your own function.
    config.reward.terms = {
        "contrastive": 1.0,
        "jpeg": 0.0,
        "clip": 0.0,
        "aesthetic": 0.0,
        "image_reward": 0.0,
        "function": 0.0,
    }
    config.reward.clip = ""  # A folder or a hub id, as the next two; what is in them: docs/text_to_image.md.
    config.reward.aesthetic = ""
    config.reward.image_reward = ""
    config.reward.function = ""  # module:name
    config.reward.folder = "weights/text_to_image/reward"
    config.reward.rare = False  # True: no exact samples by rejection, where they would take forever.
    config.posterior.kind = "lora"
    config.posterior.rank = 4
    config.posterior.select = "unet/.*kernel"
    config.posterior.adapters = ""  # The folder of a LoRA of diffusers to start from, of these layers and this rank.
    config.objective.grad_steps = 5  # Of 20, drawn anew at every step.
    config.train.steps = 200
    config.train.batch_size = 32
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 5
    config.behaviour.accepted = 0.5
    config.behaviour.capacity = 256
    config.behaviour.warm_accepted = 128
    config.log.every = 5
    config.checkpoint.every = 25
    config.eval.num_samples = 400
    config.eval.batch_size = 200
    config.eval.exact_samples = 100
    config.pretrain.what = "prior"
    config.pretrain.pictures = 30_000  # Whose latents the prior is trained on.
    config.pretrain.optimizer = "muon"
    config.pretrain.learning_rate = 1e-2
    config.pretrain.ema = 0.99
    config.pretrain.checkpoint_every = 200
    config.pretrain.steps, config.pretrain.batch_size = STAGES[variant if variant in STAGES else "prior"]
    if variant in STAGES:
        config.pretrain.what = variant
    if variant == "prompts":
        config.prompt = "a red eight | two green nines | a red two | a yellow five"
        config.objective.group = 8
        config.behaviour.accepted = 0.0
        config.behaviour.replay = 0.25
        config.behaviour.capacity = 64
        config.eval.num_samples = 100
    if variant == "sweep":  # Policy gradients are on-policy, and so is all of it.
        config.behaviour.accepted = config.behaviour.noised = 0.0
        config.objective.grad_steps = None
        config.train.learning_rate = 3e-4
        config.compare = {"runs": methods()}
    if variant == "sd15":
        config.behaviour.accepted = 0.0
        config.objective.grad_steps = 8
        config.prior.folder = "stable-diffusion-v1-5/stable-diffusion-v1-5"
        config.prior.guidance = 7.5
        config.prior.remat = True
        config.prompt = "A green colored rabbit."
        config.reward.terms.contrastive, config.reward.terms.jpeg = 0.0, 1.0
        config.reward.rare = True
        config.objective.beta = 0.1
        config.process.num_steps = 50
        config.posterior.select = "unet/.*attn.*kernel"
        config.train.steps = 2_000
        config.train.batch_size = 10
        config.train.learning_rate = 1e-4
        config.eval.num_samples = 100
        config.eval.batch_size = 10
        config.eval.exact_samples = 100
    if variant == "smoke":
        config.process.num_steps = 4
        config.objective.grad_steps = 2
        config.train.steps = 6
        config.train.batch_size = 8
        config.log.every = 1
        config.checkpoint.every = 3
        config.eval.num_samples = config.eval.batch_size = 64
        config.behaviour.capacity = config.behaviour.warm_accepted = 16
        config.eval.exact_samples = 8
    return config


def methods():
    """The sweep's runs and their changes of the config; of DPOK a beta is one over the weight of its KL."""
    runs = {f"RTB, beta {beta:g}": {"objective.beta": beta} for beta in SWEEP}
    runs |= {f"DPOK, beta {beta:g}": {"objective.loss": "dpok", "objective.alpha": 1.0 / beta} for beta in SWEEP}
    runs["DDPO"] = {"objective.loss": "ddpo"}
    # Dots separate fields in a config's names, so the changes are kept as pairs.
    return [(name, list(changes.items())) for name, changes in runs.items()]
