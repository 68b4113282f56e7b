from molmoact2_jax.text import prompt, tokenizer, vocabulary

SETUP, CONTROL = "one arm", "end-effector steps"
TASKS = ["open the drawer", "close the drawer"]


def built(num_states=16):
    return vocabulary.build(TASKS, vocabulary.phrases(SETUP, CONTROL), num_states)


def words(made, text):
    return [made.id_to_token(i) for i in made.encode(text, add_special_tokens=False).ids]


def robot_prompt(task, bins):
    return prompt.robot_prompt(prompt.robot_question(task, SETUP, CONTROL, bins, "robot_action"), "robot_action", 1)


def test_the_fixed_parts_of_a_prompt_are_one_token_each():
    made, text = built(), robot_prompt(TASKS[0], [3, 15])
    ids = made.encode(text, add_special_tokens=False).ids
    assert made.decode(ids, skip_special_tokens=False) == text
    assert len(ids) <= 26 and {made.token_to_id(phrase) for phrase in vocabulary.phrases(SETUP, CONTROL)} <= set(ids)
    assert vocabulary.phrases(SETUP, CONTROL)[-1] == "assistant\n"


def test_known_words_are_tokens_and_unknown_ones_are_still_written():
    made = built()
    assert len(words(made, "open the drawer")) == 3
    for text in ("turn the knob", "ouvre le tiroir d'à côté", "开抽屉"):
        assert made.decode(made.encode(text, add_special_tokens=False).ids) == text


def test_the_ids_are_what_the_model_expects(tmp_path):
    made = built()
    ids = vocabulary.token_ids(made, 16)
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer.check(tokenizer.Tokenizer.load(tmp_path), ids)
    assert vocabulary.rows(made) % vocabulary.MULTIPLE == 0 and ids.image_start == vocabulary.rows(made)


def test_the_order_of_the_instructions_changes_nothing():
    again = vocabulary.build(reversed(TASKS), vocabulary.phrases(SETUP, CONTROL), 16)
    assert again.to_str() == built().to_str()
