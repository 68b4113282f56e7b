"""Trains a policy of 72 M parameters from nothing on the ten tasks of MetaWorld MT10, for one GPU.

molmoact2 train --config=configs/metaworld_mt10.py    after, and before, these:
T=reach,push,pick-place,door-open,drawer-open,drawer-close,button-press-topdown,peg-insert-side,window-open,window-close
V="--option side=192 --option window=[8,136,64,192]"    twice the quickstart's resolution
molmoact2 collect out/mt10/demos --tasks $T --per-task 300 $V
molmoact2 data stats out/mt10/demos/lerobot --as out/mt10/demos/lerobot.json --tag metaworld --horizon 16
    --out out/mt10/norm_stats.json
molmoact2 init out/mt10/demos/lerobot --as out/mt10/demos/lerobot.json --stats out/mt10/norm_stats.json
    --sizes medium --to out/mt10/model
molmoact2 eval rollout out/mt10/run --norm-tag metaworld --tasks $T --seeds 5000-5049 --executed 8 $V
    --out out/mt10/rollout
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.run_dir = "out/mt10/run"
    config.steps = 40_000
    config.batch_size = 128
    config.model = dict(sizes="out/mt10/model")  # written by `molmoact2 init`; no weights to start from
    config.data = dict(
        robots=(dict(path="out/mt10/demos/lerobot", tag="metaworld", meaning="out/mt10/demos/lerobot.json"),),
        tokens=104,  # one example: a picture of 66 tokens, a prompt of at most 38
        crops=1,
        chunks=1,
        robot=dict(action_format="continuous", episode_end="mask"),
        held_out=25,  # every 25th episode
        workers=8,
    )
    config.loss = dict(
        num_samples=4,
        dropout=0.1,
        remat_vit="none",  # small enough to keep
        remat_llm="none",
        remat_expert="none",
    )
    config.optimizer = dict(
        peak_rates=dict(vit=3e-4, connector=3e-4, llm=3e-4, action_expert=3e-4),
        warmup_steps=1_000,
        final_fraction=0.01,
        beta2=0.98,
        weight_decay=0.05,
        ema=0.999,
    )
    config.augment = "full"
    config.save = dict(every=5_000, keep=dict(latest=2))
    config.evaluate = dict(every=2_000, batches=8, episodes=10)
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    return config
