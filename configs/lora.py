"""Adapts decoder and vision by low-rank changes and trains the expert whole: fine-tuning on one small card.

molmoact2 train --config=configs/lora.py --config.model.init_from=CHECKPOINT --config.data.robots[0].path=DIR
molmoact2 export runs/lora --to DIR --merge-lora
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.run_dir = "runs/lora"
    config.steps = 50_000  # training.md 6, README recipe for new data
    config.batch_size = 16  # rows; 16-32 are advised below 200 demonstrations (training.md 6)
    config.accumulation = 1
    config.model = dict(
        init_from="checkpoints/MolmoAct2",
    )
    config.data = dict(
        robots=(dict(path="data/mine", tag="mine", meaning=""),),  # meaning: explains the columns, if the tag does not
        tokens=2100,  # training.md 1.1
        robot=dict(action_format="both"),
        held_out=10,  # ours: every tenth episode, for the error that `evaluate` reports from step 0
    )
    config.loss = dict(num_samples=8, insulate=False)  # training.md 6, defaults of the LeRobot port
    config.lora = dict(  # training.md 1.6: every projection of decoder, head and vision; the bias of none
        targets=r"^(llm/blocks/(q|k|v|o|gate|up|down)|llm/head/kernel|vit/patches/patch"
        r"|vit/blocks/(q|k|v|o|up|down)|connector/(q|k|v|o|gate|up|down))$",
        rank=64,
        alpha=16.0,
        dropout=0.05,
    )
    config.optimizer = dict(
        peak_rates=dict(vit=5e-5, connector=5e-5, llm=5e-5, action_expert=5e-5),  # training.md 1.2, LoRA runs
        warmup_steps=200,  # training.md 1.2
    )
    config.evaluate = dict(every=1_000, batches=4, episodes=4)  # ours
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    return config
