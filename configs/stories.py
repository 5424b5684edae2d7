"""Stories: the missing fourth sentence of five, by a masked diffusion that has never seen an ending (paper, sec. 3.3).

    python experiments/run.py --config=configs/stories.py                   embedded stories, six minutes on two cores
    python experiments/run.py --config=configs/stories.py:gflownet          RTB on a language model; not measured
    python experiments/run.py --config=configs/stories.py:table3            all methods, three seeds; half an hour
    python experiments/run.py --config=configs/stories.py:smoke             the whole path in about a minute

Prior and reward of the default are shipped. Each was made by

    python experiments/run.py --config=configs/stories.py --mode=pretrain          the prior: sentences 1 to 4
    python experiments/run.py --config=configs/stories.py:reward --mode=pretrain   the reward: a causal language model

Models that learned p(z | x, y) from data, a masked and a causal one, are compared with where they have been made:

    S="python experiments/run.py --config=configs/stories.py"
    $S --mode=pretrain --config.pretrain.what=supervised
    $S --mode=pretrain --config.pretrain.what=supervised_autoregressive
    $S --config.baselines.supervised=... --config.baselines.supervised_autoregressive=...

A file of ROCStories is a CSV with the columns sentence1 to sentence5. Its prior and reward are made first, and the
chain has as many steps as its longest middle has tokens (a run with another number says which):

    D="--config.data.path=stories.csv --config.data.test_stories=100 --config.process.num_steps=24"
    python experiments/run.py --config=configs/stories.py $D --mode=pretrain
    python experiments/run.py --config=configs/stories.py:reward $D --mode=pretrain
    python experiments/run.py --config=configs/stories.py $D --config.prior.weights=... --config.reward.weights=...

SEDD or MDLM as they are published are a prior over GPT-2's byte pairs, which need no making, and any causal language
model may be the reward (a run with another number of steps says which):

    D="--config.data.path=stories.csv --config.data.tokenizer=FOLDER_OF_GPT2 --config.process.num_steps=24"
    P="--config.prior.weights=kuleshov-group/mdlm-owt --config.reward.model=gpt2 --config.reward.weights="
    python experiments/run.py --config=configs/stories.py $D $P

In place of log p(ending | beginning, middle), log r is what a function of yours says (docs/howto/reward.md), any Python
function (beginnings, infills, endings) -> log r of lists of texts:

    python experiments/run.py --config=configs/stories.py --config.reward.function=module:function

Expected: verdict consistent, path-KL below 0.1 nats, ESS about 90 %; see docs/results/stories.md. On one free core
training takes two minutes, and a seed of the table five.
"""

from configs.base import base, check_variant

VARIANTS = ("", "gflownet", "table3", "reward", "smoke")


def get_config(variant: str = ""):
    check_variant("configs/stories.py", variant, VARIANTS)
    config = base()
    config.domain = "stories"
    config.data.tokenizer = "words"  # words | a folder with GPT-2's vocab.json and merges.txt
    config.data.min_count = 2  # Of a word in a file to be known.
    config.data.test_stories = 100
    config.data.stories = 400_000  # To pretrain on; of a file all there are, at most so many.
    config.data.conditions = 500  # Stories to fine-tune on: their endings are seen, their middles are not.
    network = {"width": 64, "depth": 2, "heads": 4}
    # A file made by --mode=pretrain, of these sizes; or a folder or hub id of SEDD or MDLM, whose own sizes count.
    config.prior = {"weights": "weights/stories_prior.safetensors", "head": "mdlm"} | network  # mdlm | sedd
    config.reward.weights = "weights/stories_reward.safetensors"
    # In place of the weights' log p(ending | beginning, middle): that of a causal language model of Hugging Face, a
    # folder or a hub id; or what a Python function says, module:name.
    config.reward.model = ""
    config.reward.function = ""
    config.reward.update(network)
    # Models that learned p(z | x, y) from data, as yardsticks: weights made by --mode=pretrain, or "" for none.
    config.baselines = {"supervised": "", "supervised_autoregressive": ""}
    config.posterior.kind = "correction"  # correction | lora
    config.posterior.rank = 8
    config.posterior.select = "kernel"
    # one_by_one, in as many steps as places | independent: each by the schedule, a floor | left_to_right: GFlowNet
    # fine-tuning of the reward's language model, which then is the prior too.
    config.process.reveals = "one_by_one"
    config.process.num_steps = 8
    config.objective.group = 8
    config.train.steps = 400
    config.train.batch_size = 8 * 8
    config.train.optimizer = "muon"
    config.train.learning_rate = 1e-2
    config.train.warmup_steps = 20
    config.behaviour.prior = 0.25
    config.behaviour.replay = 0.25
    config.behaviour.capacity = 32
    config.checkpoint.every = 100
    config.eval.stories = 16
    config.eval.best_of = 8  # Of the prior's infills, a baseline.
    # BERTScore by an encoder, folder or hub id ("": none); its layer and its baseline are listed by the package
    # bert-score.
    config.eval.bert_score = {"model": "", "layer": 40, "baseline": 0.0}
    config.eval.num_samples = 200
    config.eval.batch_size = 400
    config.eval.exact_samples = 200
    config.pretrain.what = "prior"  # prior | reward | supervised | supervised_autoregressive
    config.pretrain.steps = 5_000
    config.pretrain.batch_size = 128
    config.pretrain.learning_rate = 2e-3
    if variant == "gflownet":
        config.process.reveals = "left_to_right"
    if variant == "table3":
        # The training of the default and of gflownet, all test stories. The best of several is shown of the diffusion.
        writing = [("process.reveals", "left_to_right"), ("eval.best_of", 1)]
        config.compare = {"runs": [("diffusion", []), ("language model", writing)], "seeds": 3}
        config.eval.stories = config.data.test_stories
        config.eval.num_samples, config.eval.exact_samples = 100, 25
        config.eval.batch_size = 1_000
    if variant == "reward":
        config.pretrain.what = "reward"
        config.pretrain.steps = 4_000
    if variant == "smoke":
        config.train.steps = 6
        config.objective.group = 4
        config.train.batch_size = 16
        config.data.conditions = 20
        config.log.every = 1
        config.checkpoint.every = 3
        config.eval.stories = 4
        config.eval.best_of = 4
        config.eval.num_samples = 32
        config.eval.batch_size = 64
        config.eval.exact_samples = 4
        config.pretrain.steps = 20
    return config
