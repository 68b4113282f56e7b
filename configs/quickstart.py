"""Trains a small policy from nothing on two cores; `launch/quickstart` calls it with what it collected.

molmoact2 train --config=configs/quickstart.py --config.run_dir=DIR --config.model.sizes=MODEL
    --config.data.robots[0].path=DATASET --config.data.robots[0].meaning=DATASET.json
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.run_dir = "out/quickstart/run"
    config.steps = 4_500
    config.batch_size = 32
    config.dtype = "float32"  # a CPU computes bfloat16 more slowly
    config.model = dict(sizes="out/quickstart/model")  # written by `molmoact2 init`; no weights to start from
    config.data = dict(
        robots=(
            dict(path="out/quickstart/demos/lerobot", tag="metaworld", meaning="out/quickstart/demos/lerobot.json"),
        ),
        tokens=48,  # one example: a picture of 18 tokens, a prompt of 29
        crops=1,
        chunks=1,
        robot=dict(action_format="continuous", episode_end="mask"),
        held_out=25,  # every 25th episode, for the error that `evaluate` reports
    )
    config.loss = dict(
        num_samples=2,  # fewer samples of the flow and more pictures learn faster here
        dropout=0.0,
        remat_vit="none",  # nothing needs to be saved
        remat_llm="none",
        remat_expert="none",
        unroll=True,  # twice as fast on a CPU
    )
    config.optimizer = dict(
        peak_rates=dict(vit=1e-3, connector=1e-3, llm=1e-3, action_expert=1e-3),
        warmup_steps=100,
        final_fraction=0.01,
        beta2=0.98,
        eps=1e-8,
        weight_decay=0.05,
        ema=0.99,
    )
    config.augment = "none"
    config.seed = 6198
    config.save = dict(every=500, keep=dict(latest=2))
    config.log = dict(every=50)
    config.evaluate = dict(every=500, batches=4, episodes=6)
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    return config
