"""Trains the action expert alone; vision and decoder stay as they are.

molmoact2 train --config=configs/expert_only.py --config.model.init_from=CHECKPOINT --config.data.robots[0].path=DIR
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.run_dir = "runs/expert_only"
    config.steps = 50_000  # training.md 6, README recipe for new data
    config.batch_size = 16  # rows; 16-32 are advised below 200 demonstrations (training.md 6)
    config.model = dict(
        init_from="checkpoints/MolmoAct2",
    )
    config.data = dict(
        robots=(dict(path="data/mine", tag="mine", meaning=""),),  # meaning: explains the columns, if the tag does not
        tokens=2100,  # training.md 1.1
        robot=dict(action_format="continuous"),  # an answer would train nothing
        held_out=10,  # ours: every tenth episode, for the error that `evaluate` reports from step 0
    )
    config.loss = dict(
        num_samples=8,  # paper Table 11
        insulate=True,  # nothing behind the expert is trained, so no gradient need reach it
        dropout=0.0,  # ours: frozen layers need none
    )
    config.frozen = (r"^(vit|connector|llm)/",)  # ft_vlm=false, ft_embedding=none (training.md 1.4)
    config.optimizer = dict(
        peak_rates=dict(vit=5e-6, connector=5e-6, llm=1e-5, action_expert=5e-5),  # training.md 1.2
        warmup_steps=200,  # training.md 1.2
    )
    config.evaluate = dict(every=1_000, batches=4, episodes=4)  # ours
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    return config
