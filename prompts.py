"""Every prompt of this project, and every parser of what comes back. Standard library only; copies alone.

A prompt is the text of one user turn. `TEMPLATES` holds them all as plain strings with `{statement}`-like holes that are
filled by replacement (statements are full of braces, so not by str.format); `load(path)` replaces any of them from a JSON
file, which is how the miniature world keeps its prompts short and how a reader tries their own wording. `encode` puts a turn
through the tokenizer's chat template, in non-thinking mode unless thinking is asked for.

The plan contract is Appendix B of the paper in our own words, clause by clause: one label line per strategy, one sentence of
at most 45 words on it, no steps, no code, nothing after the last label.

Parsers are total: any text gives a value, None, or (parse_plan alone) a PlanError that says what was wrong. Two questions are
kept apart on purpose. `parse_plan` asks "are there K labelled strategies?", because without them there is nothing to solve;
`check_plan` asks "does the text keep the rest of the contract?", which is what the rule gate says and nothing else uses.
"""

import json
import re

LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
THOUGHTS = (("<think>", "</think>"), ("<|channel>", "<channel|>"))      # how Qwen and Gemma mark one
MAX_WORDS = 45          # Appendix B: words a strategy may have
FAULTS = ("parse", "duplicate", "leak", "vague", "off_topic")   # section 3.2: what the validity gate checks

# ------------------------------------------------------------------------------------------------ templates

CODE_FORMAT = ("Write one complete Python 3 program that reads standard input and writes standard output. "
               "Reply with the program in a single ```python code block.")
CALL_FORMAT = ("Complete the following Python 3 starter code; keep the name and the arguments of `{fn_name}`. "
               "Reply with the whole code in a single ```python code block.\n```python\n{starter_code}\n```")

TEMPLATES = {
    # Appendix B, "plan prompt contract (training and inference)"
    "plan": """{statement}

Propose {k} alternative methods for solving this problem. Do not solve it yet.
- Give each method its own line, labelled {labels}, in this order.
- Each method is exactly one concise sentence on its label line, of no more than 45 words.
- No substeps, derivations, implementation walkthroughs, code, or methods that run over several lines.
- The methods must differ in substance, and none may state the final answer.
- Stop right after the method labelled {last}; add no analysis and no comment.""",
    # Eq. 5: the strategy stands last, so that the K branches of a problem share everything before it
    "solve": "{statement}\n\n{format}\n\nUse this method:\n{strategy}",
    # Eq. 2
    "direct": "{statement}\n\n{format}",
    "plan_and_solve": """{statement}

First understand the problem and devise a plan for solving it, in plain words. Then carry out the plan step by step.
{format}""",
    "sketch": """{statement}

Propose one method for solving this problem, in a single concise sentence of no more than 45 words, without code.
Do not solve it yet.""",
    "skill": "Strategy {z} | {statement}\n\n{format}",
    # PlanSearch (Appendix P): observations, then plans from combinations of at most two of them
    "observations": """{statement}

List up to {n} short, non-obvious observations about this problem that could help to solve it. One observation a line,
numbered, without code and without a full solution.""",
    "plan_from_observations": """{statement}

Observations:
{observations}

Using these observations, describe one method for solving the problem in a single concise sentence, without code.""",
    # Eq. 9: the gate's own prompt; the answer's first token decides
    "gate": """Problem:
{statement}

Proposed methods:
{plan}

Is this a valid plan? It is valid if it holds {k} methods, no two of them are the same method in other words, none contains
code or the final answer, each says concretely what to do, and each is about this problem. Whether a method would succeed
does not matter. Answer with one word, Pass or Fail.""",
    # Appendix B, "SFT candidate-generation prompt"
    "teacher": """{statement}

Suggest {n} candidate high-level methods that a solver could use for this programming problem.
- Each must be usable by a solver without the others.
- Each must be specific to exactly this problem.
- Each must name a concrete hook: the data structure, the invariant or the transformation that sets it apart.
- Prefer strategies that really differ, or useful variants, over the same approach in other words.
- Be concise and precise: no filler, no general advice, no method for another task, no unfounded assumption, no cosmetic
  rewrite, no code, no pseudocode, no final answer, no full solution.
Number the methods 1 to {n}, one a line.""",
    "teacher_trace": """{statement}

These {k} methods were chosen for the problem:
{plan}

In a few sentences, think through what the problem asks and why these are worth trying, without solving it and without code.""",
    # a made negative for the gate: the same method twice
    "rephrase": """Say this method again in other words, so that it stays exactly the same method. Reply with one concise sentence of
at most 45 words, without code and without a label.

{strategy}""",
    "judge_candidates": """Problem:
{statement}

Candidate methods:
{candidates}

Judge each candidate strictly. Keep it only if it is specific to this problem, concrete enough for a solver to act on, free of
code, pseudocode and final answers, and not the same method as an earlier kept one in other words. Whether it would solve the
problem does not matter. Reply with one line a candidate, its number and KEEP or DROP, for example "1: KEEP".""",
    # the rubric is the gate's contract of section 3.2 and says nothing of success
    "judge_plan": """Problem:
{statement}

Proposed methods:
{plan}

Check this list of {k} methods for these faults:
- parse: it is not {k} labelled methods
- duplicate: two of them are the same method, be it in other words
- leak: one contains the final answer or an implementation
- vague: one does not say what to do
- off_topic: one is not about this problem
Whether the methods would solve the problem does not matter. Reply with one line: "faults: none", or "faults:" and the names of
the faults that apply, separated by commas.""",
    # LiveCodeBench output prediction (Table 7): every method's prompts work on it, with this {statement} and {format}
    "test_output": """{statement}

```python
{starter_code}
```

What does the correct solution return for the call `{call}`?""",
    "answer_format": """Give the value as a Python literal, on the last line of your reply, as
[ANSWER]value[/ANSWER]""",
    # Appendix F: the taxonomy of D_alg
    "classify_plan": """Problem:
{statement}

Method:
{text}

Which one of these categories fits the method best? {categories}
Answer with the category alone.""",
    "classify_program": """Program:
```python
{text}
```

Which one of these categories of algorithm does the program implement? {categories}
Answer with the category alone.""",
}

# Table 7's Fixed-Strategy Ensemble is not defined in the paper; these four cover its taxonomy's large classes.
FIXED_STRATEGIES = [
    "Try all possibilities directly, or simulate the process exactly as described.",
    "Sort or order the items and build the answer greedily.",
    "Define overlapping subproblems and solve them by dynamic programming.",
    "Model the problem with a graph or a suitable data structure and process it systematically.",
]
TAXONOMY = ("DP", "greedy", "graph", "search/backtrack", "number-theory/math", "simulation", "data-structure",
            "divide-and-conquer", "brute-force", "other")                      # Appendix F.1


def load(path: str) -> None:
    """Replace templates by those of a JSON file {name: text}. An unknown name or a text that is no string is an error."""
    with open(path, encoding="utf-8") as f:
        try:
            texts = json.load(f)
        except json.JSONDecodeError as e:
            raise ValueError(f"{path} is not JSON ({e}); it must hold {{name: text}}") from None
    if not isinstance(texts, dict):
        raise ValueError(f"{path} must hold a JSON object {{name: text}}, not a {type(texts).__name__}")
    for name, text in texts.items():
        if name not in TEMPLATES and name != "fixed_strategies":
            raise ValueError(f"{path}: no prompt is called {name!r}; the names are {', '.join(TEMPLATES)}, fixed_strategies")
        if not isinstance(text, list if name == "fixed_strategies" else str):
            raise ValueError(f"{path}: {name!r} must be a {'list' if name == 'fixed_strategies' else 'string'}")
    FIXED_STRATEGIES[:] = texts.pop("fixed_strategies", FIXED_STRATEGIES)
    TEMPLATES.update(texts)


def fill(name: str, **values) -> str:
    """The template `name` with its holes filled, in one pass: what a value brings in is never filled again."""
    holes = re.compile("{(" + "|".join(values) + ")}") if values else None
    return holes.sub(lambda m: str(values[m[1]]), TEMPLATES[name]) if holes else TEMPLATES[name]


def _about(problem) -> dict:
    """The holes that a problem fills in every template."""
    statement, kind = problem.statement.strip(), getattr(problem, "kind", "code")
    if kind == "test_output":
        statement = fill("test_output", statement=statement, starter_code=problem.starter_code, call=problem.call)
    if kind != "code":
        form = TEMPLATES["answer_format"]
    elif problem.fn_name or problem.starter_code:
        form = CALL_FORMAT.replace("{fn_name}", problem.fn_name or "the function").replace("{starter_code}", problem.starter_code)
    else:
        form = CODE_FORMAT
    return {"statement": statement, "format": form, "starter_code": problem.starter_code}


def plan(problem, k: int = 4) -> str:
    labels = ", ".join(f"{label}:" for label in LABELS[:k])
    return fill("plan", k=k, labels=labels, last=f"{LABELS[k - 1]}:", **_about(problem))


def solve(problem, strategy: str) -> str:
    return fill("solve", strategy=strategy, **_about(problem))


def direct(problem) -> str:
    return fill("direct", **_about(problem))


def plan_and_solve(problem) -> str:
    return fill("plan_and_solve", **_about(problem))


def sketch(problem) -> str:
    return fill("sketch", **_about(problem))


def skill(problem, z: int) -> str:
    """UpSkill: z counts from 1."""
    return fill("skill", z=z, **_about(problem))


def observations(problem, n: int = 10) -> str:
    return fill("observations", n=n, **_about(problem))


def plan_from_observations(problem, chosen: list[str]) -> str:
    listed = "\n".join(f"- {o}" for o in chosen) or "- (none needed)"
    return fill("plan_from_observations", observations=listed, **_about(problem))


def gate(problem, plan_text: str, k: int = 4) -> str:
    return fill("gate", plan=plan_text.strip(), k=k, **_about(problem))


def teacher(problem, n: int = 6) -> str:
    return fill("teacher", n=n, **_about(problem))


def teacher_trace(problem, strategies: list[str]) -> str:
    return fill("teacher_trace", plan=format_plan(strategies), k=len(strategies), **_about(problem))


def rephrase(strategy: str) -> str:
    return fill("rephrase", strategy=strategy)


def judge_candidates(problem, candidates: list[str]) -> str:
    return fill("judge_candidates", candidates="\n".join(f"{i}: {c}" for i, c in enumerate(candidates, 1)), **_about(problem))


def judge_plan(problem, plan_text: str, k: int = 4) -> str:
    return fill("judge_plan", plan=plan_text.strip(), k=k, **_about(problem))


def classify(text: str, statement: str | None = None) -> str:
    """Appendix F: which category of TAXONOMY a plan item (with its statement) or a program (without) belongs to."""
    if statement is None:
        return fill("classify_program", text=text, categories=", ".join(TAXONOMY))
    return fill("classify_plan", text=text, statement=statement, categories=", ".join(TAXONOMY))


def encode(tokenizer, text: str, think: bool = False) -> list[int]:
    """Token ids of one user turn up to where the reply begins: the chat template, with thinking switched on or off by name
    because its default differs between model sizes. A tokenizer without a template gets the plain text."""
    if getattr(tokenizer, "chat_template", None):
        return tokenizer(_opened(tokenizer, text, think), add_special_tokens=False)["input_ids"]   # bos is in it already
    return tokenizer(text)["input_ids"]


def _opened(tokenizer, text: str, think: bool) -> str:
    return tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True,
                                         enable_thinking=think)


def thought_mark(tokenizer) -> str:
    """The mark of a thought that a thinking prompt has opened already (Qwen's <think>), or "". It belongs before the reply when
    that is parsed: a thought that never closes is no plan. ValueError for a chat template that knows no thinking."""
    if not getattr(tokenizer, "chat_template", None) or _opened(tokenizer, "x", True) == _opened(tokenizer, "x", False):
        raise ValueError("--with-think: the chat template of this tokenizer knows no thinking; leave the flag out")
    prompt = _opened(tokenizer, "x", True)
    return next((opened for opened, closed in THOUGHTS if opened in prompt and closed not in prompt.rpartition(opened)[2]), "")


# ------------------------------------------------------------------------------------------------ parsers

class PlanError(ValueError):
    """A text that does not hold K labelled strategies; the message says what is wrong."""


def cut_thought(text: str) -> str:
    """What stands after the last closed thought (Qwen's </think>, Gemma's <channel|>); nothing if a thought never closes."""
    for opened, closed in THOUGHTS:
        text = text.rpartition(closed)[2].partition(opened)[0]
    return text


def _label_lines(text: str, k: int) -> tuple[list[tuple[str, str]], list[str]]:
    """(label, strategy) of each label line, and the other lines that are not blank."""
    label_line = re.compile(rf"\s*([{LABELS[:k]}]):(.*)", re.DOTALL)
    labelled, others = [], []
    for line in cut_thought(text).split("\n"):
        m = label_line.match(line)
        if m:
            labelled.append((m[1], m[2].strip()))
        elif line.strip():
            others.append(line.strip())
    return labelled, others


def parse_plan(text: str, k: int = 4) -> list[str]:
    """The K strategies of a plan: each of the first K labels exactly once, in order, none empty; all other lines are ignored.

    Raises PlanError otherwise.
    """
    labelled, _ = _label_lines(text, k)
    found = "".join(label for label, _ in labelled)
    if found != LABELS[:k]:
        raise PlanError(f"label lines {' '.join(found) or '(none)'} instead of {' '.join(LABELS[:k])}")
    for label, strategy in labelled:
        if not strategy:
            raise PlanError(f"nothing stands after {label}:")
    return [strategy for _, strategy in labelled]


SECOND_SENTENCE = re.compile(r"[.!?]\s+(\w)")
CODE = re.compile(r"```|^\s*#include|\bdef\s+\w+\s*[(:]|\bclass\s+[A-Z]\w*\s*[(:]|(?:^|[:;`]\s*)import\s+\w+|\bfrom\s+\w+\s+import\b"
                  r"|\b(?:for|while)\b[^.]{0,300}:\s*$|\b(?:print|input|range|len|int|map|sorted|sum|max|min)\([^)]"
                  r"|\w\s*(?:\+=|-=|==|!=|:=)\s*\w|;\s*(?:}\s*)?$|{\s*$")


def check_plan(strategies: list[str], text: str | None = None) -> list[str]:
    """The breaches of the plan contract beyond parsing, by name, each at most once; [] means that it is kept.

    extra_text: lines that are no label lines (needs `text`, the whole plan); too_long: more than 45 words; second_sentence:
    one of .!? then white space and a capital; duplicate: two strategies equal but for case, spacing and final punctuation;
    code: a code fence or something that reads like a statement of a programming language.
    """
    found = []
    if text is not None and _label_lines(text, max(1, len(strategies)))[1]:
        found.append("extra_text")
    if any(len(s.split()) > MAX_WORDS for s in strategies):
        found.append("too_long")
    if any(m[1].isupper() for s in strategies for m in SECOND_SENTENCE.finditer(s)):
        found.append("second_sentence")
    if len({normalise(s) for s in strategies}) < len(strategies):
        found.append("duplicate")
    if any(CODE.search(s) for s in strategies):
        found.append("code")
    return found


def normalise(strategy: str) -> str:
    """A strategy as literal duplicates are counted: case, spacing and final punctuation do not matter."""
    return " ".join(strategy.casefold().split()).rstrip(".!?;, ")


def format_plan(strategies: list[str]) -> str:
    """The plan text of K strategies, as the planner is taught to write it."""
    return "\n".join(f"{label}: {s}" for label, s in zip(LABELS, strategies, strict=False))


def extract_code(text: str) -> str | None:
    """The program of a reply: the last closed ``` block after any thought, or None. One rule for every method.

    A block opens at a line that begins with ``` and closes at the next such line; one that never closes (a reply cut at its
    length limit) is no program.
    """
    program, block = None, None
    for line in cut_thought(text).split("\n"):
        if line.strip().startswith("```"):
            if block is None:
                block = []
            else:
                program, block = "\n".join(block), None
        elif block is not None:
            block.append(line)
    return program if program and program.strip() else None


def parse_list(text: str) -> list[str]:
    """The items of a numbered or dashed list, one a line."""
    items = (re.match(r"[\s*]*\d+\s*[.):]\**\s*(\S.*)|\s*[-*]\s+(\S.*)", line) for line in cut_thought(text).split("\n"))
    return [(m[1] or m[2]).strip() for m in items if m]


def _plain(text: str) -> str:
    """The reply of a judge without its thought and the marks of bold and code."""
    return re.sub("[*`]", "", cut_thought(text))


def parse_verdicts(text: str, n: int) -> list[bool] | None:
    """KEEP or DROP for each of n candidates, or None unless every one is judged exactly once."""
    kept = {}
    for number, word in re.findall(r"^[^\S\n]*(\d{1,4})\s*[.):-]\s*(KEEP|DROP)\b", _plain(text), re.MULTILINE | re.IGNORECASE):
        if int(number) in kept:
            return None
        kept[int(number)] = word.upper() == "KEEP"
    return [kept[i] for i in range(1, n + 1)] if sorted(kept) == list(range(1, n + 1)) else None


def parse_faults(text: str) -> list[str] | None:
    """The faults that a judge named ([] for none), or None if the reply holds no verdict or a fault that does not exist."""
    lines = re.findall(r"^[^\S\n]*faults\s*:(.*)$", _plain(text), re.MULTILINE | re.IGNORECASE)
    if not lines:
        return None
    names = [w.strip(" .\t\r").lower() for w in lines[-1].split(",")]
    if names == ["none"]:
        return []
    return sorted(set(names), key=FAULTS.index) if all(w in FAULTS for w in names) else None


def extract_answer(text: str) -> str | None:
    """The value of the last [ANSWER]...[/ANSWER], without an `assert f(x) ==` before it; None if there is none."""
    before, closed, _ = cut_thought(text).rpartition("[/ANSWER]")
    _, opened, value = before.rpartition("[ANSWER]")
    if not closed or not opened:
        return None
    value = value.partition("[/ANSWER]")[0].strip()
    if value.startswith("assert "):
        value = value.partition("==")[2].strip()
    return value or None


def parse_category(text: str) -> str | None:
    """The category of TAXONOMY that a reply names, or None unless it names exactly one."""
    reply = cut_thought(text).lower()
    named = [c for c in TAXONOMY if re.search(rf"(?<![\w-]){re.escape(c.lower())}(?![\w-])", reply)]
    return named[0] if len(named) == 1 else None
