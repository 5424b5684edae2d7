"""Fields that every domain has, with the values most of them keep.

Paths in a config are relative to the repository, wherever a command is typed; ``--config`` and ``--workdir``, which are
no fields, to the current folder. ``~`` is the home folder.
"""

from ml_collections import ConfigDict, config_dict


def check_variant(file: str, variant: str, allowed: tuple[str, ...]) -> None:
    """Raises a ValueError naming the variants a config has, unless ``variant`` is one of them."""
    if variant not in allowed:
        raise ValueError(f"{file} has no variant {variant!r}; it has {', '.join(filter(None, allowed))}.")


def regression(
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    optimizer: str = "adam",
    ema: float = 0.99,
    checkpoint_every: int = 1_000_000,
) -> ConfigDict:
    """What `experiments.pretrain.fit` reads."""
    return ConfigDict(locals())


def base() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.devices = 0  # 0: all devices; the batch must divide over them.
    config.cpu_devices = 2  # What a CPU is split into, where JAX runs on one: cores share a batch better than a matrix.
    config.precision = "float32"  # float32 | bfloat16: what denoisers compute in; log-probabilities are float32.
    config.fsdp = 1  # Devices that share one copy of prior, posterior and optimizer; must divide their number.
    config.distributed = False  # Several processes share the run: docs/tpu_pods.md.

    config.data = ConfigDict()
    config.data.path = ""  # A local data set; "" for the default source.

    config.train = ConfigDict()
    config.train.steps = 1000
    config.train.batch_size = 64
    config.train.optimizer = "adam"  # adam | muon: matrices by orthogonalised momentum, at some five times Adam's rate.
    config.train.learning_rate = 1e-3  # Warms up, then falls to 0 along a cosine.
    config.train.warmup_steps = 0
    config.train.log_z_learning_rate = 0.1
    config.train.clip_norm = 1.0
    # A step with a loss or gradient that is not finite, or a log Z beyond the limit, is skipped and counted.
    config.train.log_z_limit = 1e6  # Nats. There float32 knows a log Z to 0.06.
    config.train.max_skipped = 10  # Steps skipped in a row before the run stops.

    # Patience with a reward that raises, hangs, or gives no number: then the run saves what is done and stops.
    config.reward = ConfigDict()
    config.reward.retries = 2
    config.reward.retry_seconds = 1.0
    config.reward.timeout = 0.0  # Seconds to wait for an answer; 0: for ever.

    config.objective = ConfigDict()
    config.objective.loss = "rtb"  # rtb | reinforce | reinforce_reward | ddpo | dpok
    config.objective.log_z = "vargrad"  # vargrad | learned | conditional
    config.objective.group = 0  # Paths per condition in a batch, where the domain has conditions; else 0.
    config.objective.beta = 1.0
    config.objective.beta_warmup = 0  # Steps over which the exponent of r rises linearly to beta.
    config.objective.grad_steps = config_dict.placeholder(int)  # None: all steps carry the gradient.
    config.objective.chunk = 1  # Steps per network call in the gradient: more of them for an accelerator, not on CPU.
    config.objective.cutoff = 0.0
    config.objective.alpha = 0.0  # Of reinforce_reward's squared log-ratio, dpok's KL.

    # Where the paths of a batch come from, as fractions; the rest is on-policy.
    config.behaviour = ConfigDict()
    config.behaviour.accepted = 0.0  # Prior paths accepted against the reward's bound: exact posterior paths.
    config.behaviour.noised = 0.0  # Noised anew: the ends of accepted paths, or the data of the conditions.
    config.behaviour.prior = 0.0
    config.behaviour.replay = 0.0  # The ends of earlier on-policy paths, noised anew, preferring high reward.
    config.behaviour.replay_temperature = 1.0
    config.behaviour.capacity = 1024  # Of each buffer; replay has one for each condition.
    config.behaviour.warm_accepted = 128  # Accepted paths to gather before the first step.
    config.behaviour.prior_paths = 0  # Prior paths drawn for acceptance at every step.
    config.behaviour.widen = 0.0  # Exploration: std added to every sampled step ...
    config.behaviour.widen_hold = 0  # ... for so many steps,
    config.behaviour.widen_until = 1  # ... then falling linearly to 0 at this one.

    # Before RTB, a posterior with a score regresses it on the gradient of a value, along its own paths.
    config.steer = regression(
        steps=0, batch_size=8, optimizer="muon", learning_rate=2e-2, weight_decay=0.0, checkpoint_every=100
    )
    config.steer.strength = 1.0  # Of the gradient: more makes up for what that of a learned value lacks.

    config.posterior = ConfigDict()
    config.posterior.kind = "full"
    config.posterior.learn_variance = False
    config.posterior.strength = 1.0  # Of guidance that is not trained.
    config.posterior.num_samples = 10  # Of loss_guidance.
    config.posterior.start = ""  # final_params.safetensors of a finished run to start from; "": from the prior.

    # Runs to put side by side: {name: {field: value}}, each a variation of this config.
    config.compare = ConfigDict()
    # Methods by labels by seeds (`experiments.table`).
    config.table = ConfigDict()

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 500
    config.checkpoint.keep = 2

    config.log = ConfigDict()
    config.log.every = 10

    config.eval = ConfigDict()
    config.eval.num_samples = 20_000  # Of each condition, where there are any, as everything here.
    config.eval.batch_size = 2_000  # Paths rolled out at once, of all conditions together.
    config.eval.exact_samples = 20_000  # In each of two independent exact sets.
    config.eval.recompute_exact = False
    # Where the evaluated samples are from: paths of the posterior, which have weights and so a certificate, or what is
    # selected: best_of (of the prior's), smc (the prior proposes), smc_posterior (the posterior proposes).
    config.eval.sampler = "paths"
    config.eval.best_of = 10
    config.eval.particles = 100  # Of each system of smc.
    config.eval.exact_cache = "runs/exact"

    config.process = ConfigDict()
    config.process.num_steps = 100

    config.pretrain = regression(
        steps=10_000, batch_size=512, learning_rate=1e-3, weight_decay=0.0, ema=0.999, checkpoint_every=1000
    )
    return config
