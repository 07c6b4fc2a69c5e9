"""Configuration files and overrides that are wrong: nothing is loaded, and nothing is written."""

from __future__ import annotations

from bad_input.damage import both, file
from bad_input.harness import Row

MINE = "apa-train config=mine.yaml"


def yaml(name: str, content: str | bytes, line: str) -> Row:
    return Row(name=name, command=MINE, make=file("mine.yaml", content), line=line)


def typed(name: str, overrides: str, line: str) -> Row:
    return Row(name=name, command=f"apa-train config=base.yaml {overrides}", line=line)


# Nine items of nine items of …: 490 million values, in a few lines.
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))

ROWS = [
    # the file itself
    yaml("a bomb of aliases", BOMB, "mine.yaml: holds more than 10,000 values, its aliases (*) written out; …"),
    yaml("nested too deep", "seed: " + "[" * 5000, "mine.yaml: refers to itself, or is nested too deeply; …"),
    yaml("a number", "3\n", "mine.yaml: not a mapping of keys to values; write lines such as `seed: 1`"),
    yaml("a word", "hello\n", "mine.yaml: not a mapping of keys to values; …"),
    yaml("base 60", "training.iterations: 1:30\n", "mine.yaml: training.iterations: line 1: YAML 1.1 reads 1:30 as another number; write it plainly, or '1:30' for text"),
    yaml("base 8", "seed: 010\n", "mine.yaml: seed: line 1: YAML 1.1 reads 010 as another number; write it plainly, or '010' for text"),
    yaml("base 8 of a reward's weight", "reward.components.a: {weight: -010}\n", "mine.yaml: reward.components.a.weight: line 1: YAML 1.1 reads -010 as another number; …"),
    yaml("a number for true or false", "resume_allow_changes: 2\n", "mine.yaml: resume_allow_changes: '2' is not true or false; give true or false"),
    yaml("no value for what the recipe has", "defaults: [base.yaml]\npolicy.path: ???\n", "policy.path: not set; give it a value, such as policy.path=VALUE, …"),
    yaml("no value for a number", "defaults: [base.yaml]\nseed: ???\n", "seed: not set; …"),
    yaml("a list within a list", "defaults: [base.yaml]\ngeneration.stop: [[a]]\n", "mine.yaml: generation.stop: '[['a']]' is not a list of texts; give a list such as [a,b]"),
    yaml("several choices of a group", "defaults: [base.yaml, {objective: [apa, ppo]}]\n", "mine.yaml: defaults: {'objective': ['apa', 'ppo']} is not a recipe or one choice; write `- objective: ppo`"),
    yaml("YAML that does not close", "seed: [1, 2\nprecision: fp32\n", "mine.yaml: line 2: not YAML: expected ',' or ']', but got ':'; fix that line"),
    yaml("a tab for indentation", "policy:\n\tpath: x\n", "mine.yaml: line 2: not YAML: …'\\t'…; fix that line"),
    yaml("one key twice", "seed: 1\nprecision: fp32\nseed: 2\n", "mine.yaml: line 3: not YAML: found duplicate key seed; fix that line"),
    yaml("one key twice, dotted and nested", "policy.path: a\npolicy:\n  path: b\n", "mine.yaml: policy.path: set twice; keep one of the two"),
    yaml("a Python tag", "seed: !!python/object/apply:os.system ['touch owned']\n", "mine.yaml: line 1: not YAML: …tag …python/object/apply:os.system…; fix that line"),
    yaml("two documents", "seed: 1\n---\nseed: 2\n", "mine.yaml: line 2: not YAML: …another document; fix that line"),
    yaml("bytes of something else", b"\x7fELF\x02\x01\x01\x00\x00\xff\xfe", "mine.yaml: cannot be read: …; give a text …"),
    yaml("Latin-1", "output_dir: caf\xe9\n".encode("latin-1"), "mine.yaml: cannot be read: …; give a text file that …"),
    yaml("anchors in a circle", "policy: &a\n  path: x\n  adapter: *a\n", "mine.yaml: refers to itself, or is nested too deeply; write it out without & and *"),
    # what it says
    yaml("a mapping for a number", "seed: {a: 1}\n", "mine.yaml: seed: '{'a': 1}' is not a whole number; give a whole number"),
    yaml("a number for a mapping", "data.template_arguments: 3\n",
         "mine.yaml: data.template_arguments: '3' is not names and values, such as {a: 1}; give …"),
    typed("a prompt template without a place for the prompt", "data.prompt_template=Answer:",
          "data.prompt_template: contains no {prompt}; put {prompt} where the prompt belongs"),
    yaml("a prompt template for chats", "defaults: [reviews_apa]\ndata: {format: chat, prompt_template: 'Q: {prompt}'}\n",
         "data.prompt_template: set, but it applies to plain text, not to data.format=chat; add data.format=text, or data.prompt_template=null"),
    typed("a system prompt for HH's plain text", "data.format=hh data.system_prompt=x",
          "data.system_prompt: set, but data.format=hh uses no chat template; add data.format=chat, or data.system_prompt=null"),
    typed("a template argument for plain text", "data.format=text data.template_arguments={a:1}",
          "data.template_arguments: set, but data.format=text uses no chat template; add data.format=chat, or …"),
    typed("a revision of no model", "reference.revision=main", "reference.revision: set, but reference.path is not; add it, or reference.revision=null"),
    typed("a template argument of our own", "data.template_arguments={tokenize:true}",
          "data.template_arguments: tokenize is set by apa-cli; leave it out"),
    yaml("a list for text", "policy.path: [a, b]\n", "mine.yaml: policy.path: '['a', 'b']' is not text; give text"),
    yaml("a reference to itself", "output_dir: ${output_dir}\n", "output_dir: Recursive interpolation detected; fix the ${...}, …"),
    yaml("a dollar that does not close", "output_dir: ${nowhere\n", "mine.yaml: output_dir: …; fix the ${...}"),
    yaml("a secret asked of the environment", "output_dir: ${oc.env:NO_SUCH_VARIABLE}\n",
         "output_dir: …'NO_SUCH_VARIABLE' not found…; fix the ${...}, …"),
    yaml("a NUL in a path", 'defaults: [base.yaml]\noutput_dir: "a\\0b"\n',
         "output_dir: no folder … can be made: …; name another: output_dir=DIR"),
    # which files it extends
    yaml("defaults that choose what a group lacks", "defaults: [{objective: pp0}]\n",
         "objective=pp0: no such choice; did you mean ppo? choose one of …"),
    Row(
        name="files that extend one another", command=MINE,
        make=both(file("mine.yaml", "defaults: [other.yaml]\n"), file("other.yaml", "defaults: [mine.yaml]\n")),
        line="config: files that extend one another in a circle; let one of them name a recipe",
    ),
    Row(name="nothing in the file, and nothing else said", command="apa-train config=mine.yaml policy.path=???",
        make=file("mine.yaml", ""), line="policy.path: not set; give it a value, such as policy.path=VALUE…"),
    # overrides
    typed("two recipes", "config=reviews_ppo", "config: given twice (base.yaml, reviews_ppo); keep one of the two"),
    typed("an empty sweep", "-m 'seed=range(3,1)'", "seed: seed=range(3,1): no value is in it; begin a range below its end, such as range(1,3)"),
    typed("several rewards and one", "reward.components.a.path=m", "reward.path: set, but the rewards are in reward.components; add reward.path=null, or …"),
    typed("a reward that is no mapping", "reward.path=null reward.components.a=m",
          "reward.components.a: a group of keys, not a value ('m'); write reward.components.a.KEY=VALUE"),
    Row(name="no weight", command="apa-train config=reviews_apa_rewards reward.components.form.weight=0",
        line="reward.components.form.weight: 0, so that it has no effect; give it a weight, or remove it: ~reward.components.form"),
    yaml("a reward without its keys", "reward.path: null\nreward.components.a: 3\n",
         "mine.yaml: reward.components.a: a group of keys, not a value ('3'); write `reward.components.a.KEY: VALUE`"),
    yaml("rewards in a list", "reward.path: null\nreward.components: [a, b]\n", "mine.yaml: reward.components: '['a', 'b']' is not names and values, such as {a: 1}; give names with keys below them, …"),
    yaml("keys below a list", "tracking.wandb.tags: {a: 1}\n", "mine.yaml: tracking.wandb.tags: '{'a': 1}' is not a list such as [a,b]; give a list such as [a,b]"),
    typed("nothing for text", "policy.path=", "policy.path: empty text; give it a value, or leave it out"),
    typed("a function of Hydra's that would call something", "'+x={_target_: os.system}'", "x: unknown key; …"),
    typed("an interpolation that would run something", "'output_dir=${python:1}'", "output_dir: Unsupported interpolation type python; …"),
    typed("rows at once for a backend with caches of its own", "generation.rows=8 generation.backend=static",
          "generation.rows: set, but generation.backend=static manages its own cache; add generation.backend=hf, or generation.rows=null"),
    typed("a compiled update that recomputes", "training.compile=true policy.gradient_checkpointing=true",
          "training.compile: compiled code decides itself what to keep, but policy.gradient_checkpointing=true; set training.compile or policy.gradient_checkpointing to false"),
]  # fmt: skip
