"""Every prompt of this project, the paper's prompt builders, and the parsers of plans and programs.

Standard library only; this file copies alone.

A prompt is the text of one user turn. `TEMPLATES` holds all of them, also those of the rivals, the
teacher and the judge, whose builders are in rivals/prompts.py and prepare/prompts.py: one place to
read and edit every text. `load(path)` replaces any of them from a JSON file {name: text}. `encode`
puts a turn through the tokenizer's chat template.

The plan contract is Appendix B of the paper in our own words, clause by clause. Two questions about
a plan are kept apart on purpose. `parse_plan` asks "are there K labelled strategies?", because
without them there is nothing to solve. `check_plan` asks "does the text keep the rest of the
contract?"; only the rule gate and the teacher's funnel use the answer.

Parsers are total: any text gives a value, None, or (parse_plan alone) a PlanError.
"""

import ast
import json
import re
import warnings
from typing import Any, NamedTuple

LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# How Qwen and Gemma mark a thought.
THOUGHTS = (("<think>", "</think>"), ("<|channel>", "<channel|>"))
MAX_WORDS = 45          # Appendix B: words a strategy may have
# Section 3.2: what the validity gate checks.
FAULTS = ("parse", "duplicate", "leak", "vague", "off_topic")

# ----------------------------------------------------------------------------------------------
# Templates. Holes like {statement} are filled by replacement and not by str.format, because
# statements are full of braces.

TEMPLATES = {
    # a system turn before every prompt; "": none, and the chat template writes its own
    "system": "",
    # how a problem is shown, the {statement} of all other templates. To show public tests, too:
    # "{statement}\n\nExamples:\n{examples}"
    "problem": "{statement}",
    # one public test of {examples}: of a function, and of a program
    "call_example": "{call} == {output}",
    "io_example": "Input:\n{input}\nOutput:\n{output}",
    # the {format} of a reply: a whole program, a call, or a predicted value
    "code_format": """Write one complete Python 3 program that reads standard input and writes \
standard output. Reply with the program in a single ```python code block.""",
    "call_format": """Complete the following Python 3 starter code; keep the name and the \
arguments \
of `{fn_name}`. Reply with the whole code in a single ```python code block.
```python
{starter_code}
```""",
    "answer_format": """Give the value as a Python literal, on the last line of your reply, as
[ANSWER]value[/ANSWER]""",
    # Appendix B, "plan prompt contract (training and inference)"
    "plan": """{statement}

Propose {k} alternative methods for solving this problem. Do not solve it yet.
- Give each method its own line, labelled {labels}, in this order.
- Each method is exactly one concise sentence on its label line, of no more than 45 words.
- No substeps, derivations, implementation walkthroughs, code, or methods that run over several \
lines.
- The methods must differ in substance, and none may state the final answer.
- Stop right after the method labelled {last}; add no analysis and no comment.""",
    # Eq. 5: the strategy comes last, so that a problem's K branches share everything before it
    "solve": "{statement}\n\n{format}\n\nUse this method:\n{strategy}",
    # Eq. 2
    "direct": "{statement}\n\n{format}",
    "plan_and_solve": """{statement}

First understand the problem and devise a plan for solving it, in plain words. Then carry out the \
plan step by step.
{format}""",
    "sketch": """{statement}

Propose one method for solving this problem, in a single concise sentence of no more than 45 \
words, without code.
Do not solve it yet.""",
    "skill": "Strategy {z} | {statement}\n\n{format}",
    # Table 7's Fixed-Strategy Ensemble, one strategy a line. The paper does not define it; these
    # four cover the large classes of its taxonomy.
    "fixed_strategies": """Try all possibilities directly, or simulate the process exactly as \
described.
Sort or order the items and build the answer greedily.
Define overlapping subproblems and solve them by dynamic programming.
Model the problem with a graph or a suitable data structure and process it systematically.""",
    # PlanSearch (Appendix P): observations, then plans from combinations of at most two of them
    "observations": """{statement}

List up to {n} short, non-obvious observations about this problem that could help to solve it. \
One observation a line,
numbered, without code and without a full solution.""",
    "plan_from_observations": """{statement}

Observations:
{observations}

Using these observations, describe one method for solving the problem in a single concise \
sentence, without code.""",
    # Eq. 9: the gate's own prompt; the answer's first token decides
    "gate": """Problem:
{statement}

Proposed methods:
{plan}

Is this a valid plan? It is valid if it holds {k} methods, no two of them are the same method in \
other words, none contains
code or the final answer, each says concretely what to do, and each is about this problem. \
Whether a method would succeed
does not matter. Answer with one word, Pass or Fail.""",
    # Appendix B, "SFT candidate-generation prompt"
    "teacher": """{statement}

Suggest {n} candidate high-level methods that a solver could use for this programming problem.
- Each must be usable by a solver without the others.
- Each must be specific to exactly this problem.
- Each must name a concrete hook: the data structure, the invariant or the transformation that \
sets it apart.
- Prefer strategies that really differ, or useful variants, over the same approach in other words.
- Be concise and precise: no filler, no general advice, no method for another task, no unfounded \
assumption, no cosmetic
  rewrite, no code, no pseudocode, no final answer, no full solution.
Number the methods 1 to {n}, one a line.""",
    "teacher_trace": """{statement}

These {k} methods were chosen for the problem:
{plan}

In a few sentences, think through what the problem asks and why these are worth trying, without \
solving it and without code.""",
    # a made negative for the gate: the same method twice
    "rephrase": """Say this method again in other words, so that it stays exactly the same \
method. Reply with one concise sentence of
at most 45 words, without code and without a label.

{strategy}""",
    "judge_candidates": """Problem:
{statement}

Candidate methods:
{candidates}

Judge each candidate strictly. Keep it only if it is specific to this problem, concrete enough \
for a solver to act on, free of
code, pseudocode and final answers, and not the same method as an earlier kept one in other \
words. Whether it would solve the
problem does not matter. Reply with one line a candidate, its number and KEEP or DROP, for \
example "1: KEEP".""",
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
Whether the methods would solve the problem does not matter. Reply with one line: "faults: none", \
or "faults:" and the names of
the faults that apply, separated by commas.""",
    # LiveCodeBench output prediction (Table 7): the {statement} of every method's prompt
    "test_output": """{statement}

```python
{starter_code}
```

What does the correct solution return for the call `{call}`?""",
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


def load(path: str) -> None:
    """Replace templates by those of a JSON file {name: text}. ValueError for an unknown name."""
    with open(path, encoding="utf-8") as file:
        try:
            texts = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}): it must hold {{name: text}}") from None
    if not isinstance(texts, dict):
        raise ValueError(f"{path} must hold a JSON object {{name: text}}, not a "
                         f"{type(texts).__name__}")
    for name, text in texts.items():
        if name not in TEMPLATES:
            raise ValueError(f"{path}: there is no prompt {name!r}: one of {', '.join(TEMPLATES)}")
        if not isinstance(text, str):
            raise ValueError(f"{path}: {name!r} must be a string")
    TEMPLATES.update(texts)


def fill(name: str, **values: Any) -> str:
    """The template `name` with its holes filled, in one pass: holes in a value are not filled."""
    holes = re.compile("{(" + "|".join(values) + ")}")
    return holes.sub(lambda match: str(values[match[1]]), TEMPLATES[name])


def problem_holes(problem) -> dict[str, str]:
    """The holes that a problem fills in every template: statement, format, starter_code."""
    statement, kind = problem.statement.strip(), getattr(problem, "kind", "code")
    starter_code = problem.starter_code
    if kind == "test_output":
        statement = fill("test_output", statement=statement, starter_code=starter_code,
                         call=problem.call)
    statement = fill("problem", statement=statement, examples=examples(problem)).strip()
    if kind != "code":
        reply_format = TEMPLATES["answer_format"]
    elif problem.fn_name or starter_code:
        reply_format = fill("call_format", fn_name=problem.fn_name or "the function",
                            starter_code=starter_code)
    else:
        reply_format = TEMPLATES["code_format"]
    return {"statement": statement, "format": reply_format, "starter_code": starter_code}


def examples(problem) -> str:
    """The problem's public tests, "" if it has none."""
    shown = []
    for test in getattr(problem, "public_tests", ()):
        if problem.fn_name:
            arguments = ", ".join(map(repr, json.loads(test["input"])))
            call = f"{problem.fn_name}({arguments})"
            shown.append(fill("call_example", call=call, output=repr(json.loads(test["output"]))))
        else:
            shown.append(fill("io_example", input=test["input"].rstrip("\n"),
                              output=test["output"].rstrip("\n")))
    return "\n".join(shown)


def plan(problem, k: int = 4) -> str:
    """The planner's prompt (Appendix B)."""
    labels = ", ".join(f"{label}:" for label in LABELS[:k])
    return fill("plan", k=k, labels=labels, last=f"{LABELS[k - 1]}:", **problem_holes(problem))


def solve(problem, strategy: str) -> str:
    """The solver's prompt (Eq. 5)."""
    return fill("solve", strategy=strategy, **problem_holes(problem))


def direct(problem) -> str:
    """The prompt of one program without a plan (Eq. 2)."""
    return fill("direct", **problem_holes(problem))


def gate(problem, plan_text: str, k: int = 4) -> str:
    """The gate's prompt (Eq. 9)."""
    return fill("gate", plan=plan_text.strip(), k=k, **problem_holes(problem))


# ----------------------------------------------------------------------------------------------
# Tokens

def encode(tokenizer, text: str, think: bool = False) -> list[int]:
    """Token ids of one user turn up to where the reply begins. A tokenizer without a chat template
    gets the plain text."""
    if not getattr(tokenizer, "chat_template", None):
        system = TEMPLATES["system"]
        return tokenizer(f"{system}\n\n{text}" if system else text)["input_ids"]
    # the template writes the bos token itself
    return tokenizer(chat_text(tokenizer, text, think), add_special_tokens=False)["input_ids"]


def chat_text(tokenizer, text: str, think: bool) -> str:
    # Thinking is switched by name, because its default differs between sizes of one model.
    return tokenizer.apply_chat_template(turns(text), tokenize=False, add_generation_prompt=True,
                                         enable_thinking=think)


def turns(text: str) -> list[dict[str, str]]:
    """The system turn, if TEMPLATES has one, and a user turn."""
    system = [{"role": "system", "content": TEMPLATES["system"]}] if TEMPLATES["system"] else []
    return [*system, {"role": "user", "content": text}]


def thought_mark(tokenizer) -> str:
    """The mark of a thought that a thinking prompt has opened already (Qwen's <think>), or "".

    Put it before the reply when you parse that: a thought that never closes is no plan. ValueError
    for a chat template without thinking.
    """
    has_template = getattr(tokenizer, "chat_template", None)
    if not has_template or chat_text(tokenizer, "x", True) == chat_text(tokenizer, "x", False):
        raise ValueError("--with-think: this tokenizer's chat template has no thinking; leave the "
                         "flag out")
    prompt = chat_text(tokenizer, "x", True)
    for opening, closing in THOUGHTS:
        if opening in prompt and closing not in prompt.rpartition(opening)[2]:
            return opening
    return ""


# ----------------------------------------------------------------------------------------------
# Parsers

class PlanError(ValueError):
    """A text that does not hold K labelled strategies; the message says what is wrong.

    `near_miss` names the other marks in which all K labels are there, "" if they are not.
    """

    def __init__(self, message: str, near_miss: str = ""):
        super().__init__(message)
        self.near_miss = near_miss


def reply_span(text: str) -> tuple[int, int]:
    """Where the text after the last closed thought begins and ends; empty if a thought never
    closes."""
    start, end = 0, len(text)
    for opening, closing in THOUGHTS:
        closed = text.rfind(closing, start, end)
        if closed >= 0:
            start = closed + len(closing)
        opened = text.find(opening, start, end)
        if opened >= 0:
            end = opened
    return start, end


def cut_thought(text: str) -> str:
    """The text after the last closed thought; nothing if a thought never closes."""
    start, end = reply_span(text)
    return text[start:end]


def match_label(line: str, k: int) -> re.Match | None:
    """A label line of a plan of K strategies: its label is group 1, its strategy group 2."""
    return re.match(rf"\s*([{LABELS[:k]}]):(.*)", line, re.DOTALL)


def label_starts(text: str, k: int) -> list[int]:
    """Character offsets in `text` of its labels, for credit by place."""
    starts = []
    offset, end = reply_span(text)
    for line in text[offset:end].split("\n"):
        match = match_label(line, k)
        if match:
            starts.append(offset + match.start(1))
        offset += len(line) + 1
    return starts


def label_lines(text: str, k: int) -> tuple[list[tuple[str, str]], list[str]]:
    """(label, strategy) of each label line, and the other lines that are not blank."""
    labelled, others = [], []
    for line in cut_thought(text).split("\n"):
        match = match_label(line, k)
        if match:
            labelled.append((match[1], match[2].strip()))
        elif line.strip():
            others.append(line.strip())
    return labelled, others


def parse_plan(text: str, k: int = 4) -> list[str]:
    """The K strategies of a plan. PlanError unless each of the first K labels is there exactly
    once, in order, none empty; all other lines are ignored."""
    labelled, _ = label_lines(text, k)
    labels = "".join(label for label, _ in labelled)
    if labels != LABELS[:k]:
        near_miss = find_near_miss(text, k)
        hint = f"; all labels are there as {near_miss}" if near_miss else ""
        raise PlanError(f"label lines {' '.join(labels) or '(none)'} instead of "
                        f"{' '.join(LABELS[:k])}{hint}", near_miss)
    for label, strategy in labelled:
        if not strategy:
            raise PlanError(f"nothing follows {label}:")
    return [strategy for _, strategy in labelled]


# Marks in which models write labels that parse_plan, strict as Appendix B, does not take. L is the
# label; the name is an example.
NEAR_MISSES = {
    "**A:**": r"\**(L)\**:\**",
    "- A:": r"[-*+\u2022]\s+\**(L)\**:\**",
    "# A:": r"#+\s*\**(L)\**:\**",
    "A)": r"\**\(?(L)\)",
    "A.": r"\**(L)\.",
    "A -": r"\**(L)\**\s+[-\u2013\u2014]",
    "Method A:": r"(?:[-*+#]+\s*)?\**(?:method|strategy|approach|plan|option|idea)\s+(L)\b",
}


def find_near_miss(text: str, k: int) -> str:
    """The mark of NEAR_MISSES in which the K labels are there in order, each once, on a line of its
    own; "a:" for lower case, "A: B:" for labels in one line; "" for none."""
    text = cut_thought(text)
    for name, mark in NEAR_MISSES.items():
        line_start = re.compile(r"^[^\S\n]*" + mark.replace("L", f"[{LABELS[:k]}]"),
                                re.MULTILINE | re.IGNORECASE)
        labels = "".join(line_start.findall(text))
        if labels == LABELS[:k]:
            return name
        if name == "**A:**" and labels == LABELS[:k].lower():
            return "a:"
    if "".join(re.findall(rf"(?<!\w)([{LABELS[:k]}]):", text)) == LABELS[:k]:
        return "A: B:"
    return ""


SENTENCE_END = re.compile(r"[.!?]\s+(\w)")
# No sentence ends after one of these.
ABBREVIATION = re.compile(r"(?<![\w.])(?:e\.g|i\.e|a\.k\.a|w\.l\.o\.g|w\.r\.t|s\.t|vs|cf|resp"
                          r"|approx|incl|eq|fig)$", re.IGNORECASE)
# Statements of a programming language. Formulas, comparisons and the names of functions in prose
# are none: dp[i] = max(dp[i-1], a[i]), i != j, len(stack).
CODE = re.compile("|".join((
    r"```",
    r"^\s*\#include|\busing\s+namespace\b|\bstd::",
    r"\bdef\s+\w+\s*[(:]",
    r"\blambda\s+\w+(?:\s*,\s*\w+)*\s*:",
    r"\bclass\s+[A-Z]\w*\s*(?:\([^)]{0,80}\))?:",
    r"(?:^|[;`]\s*)import\s+\w",
    r"\bfrom\s+\w+\s+import\b",
    # loops and branches
    r"\b(?:for|while)\b[^.]{0,300}:\s*$",
    r"\bfor\s+\w+(?:\s*,\s*\w+)*\s+in\s[^:.]{1,100}:",
    r"\bin\s+range\(",
    r"\bfor\s*\([^)]{0,80};",
    r"\bwhile\s[^:.]{0,60}[<>=!][^:.]{0,60}:",
    r"\bif\s[^:.]{1,60}:\s*(?:return|print|continue|break|pass)\b",
    # assignments: x += 1, x++, x = [], a, b = b, a, x = 0; y = 1
    r"[\w\])]\s*(?:\+|-|\*|//|%|<<|>>)=",
    r"(?<![cC+])\+\+(?!\+)",
    r"\w\s*=\s*(?:\[\]|\{\}|\[0\])",
    r"\w\s*=\s*(?:set|dict|list|int|float|input|sorted|deque|defaultdict|Counter)\(",
    r"\b[a-z]\w*,\s*[a-z]\w*\s*=\s*[\w\[\]]+\s*,",
    r"\w\s*=[^=;]{1,60};\s*\w+\s*=",
    # input, output and methods of lists
    r"\b(?:print|input|printf|scanf)\([^)]",
    r"\binput\(\)|\bcout\s*<<|\bcin\s*>>",
    r"\bmap\(int\b|\w\.(?:append|pop|push|push_back|split|strip|sort|add|insert)\(",
    r";\s*(?:}\s*)?$|{\s*$",
)))


def check_plan(strategies: list[str], text: str | None = None) -> list[str]:
    """The breaches of the plan contract beyond parsing, each at most once; [] if there are none.

    extra_text: lines other than label lines (needs `text`, the whole plan)
    too_long: more than 45 words
    second_sentence: one of .!? then white space and a capital, but for abbreviations
    duplicate: two strategies equal but for case, spacing and final punctuation
    code: a code fence, or something that reads like a statement of a programming language
    """
    breaches = []
    if text is not None and label_lines(text, max(1, len(strategies)))[1]:
        breaches.append("extra_text")
    if any(len(strategy.split()) > MAX_WORDS for strategy in strategies):
        breaches.append("too_long")
    if any(has_second_sentence(strategy) for strategy in strategies):
        breaches.append("second_sentence")
    if len({normalise(strategy) for strategy in strategies}) < len(strategies):
        breaches.append("duplicate")
    if any(CODE.search(strategy) for strategy in strategies):
        breaches.append("code")
    return breaches


def has_second_sentence(strategy: str) -> bool:
    """Whether a capital follows one of .!? and white space; not after "vs." and the like."""
    for match in SENTENCE_END.finditer(strategy):
        before = strategy[max(0, match.start() - 10):match.start()]
        if match[1].isupper() and not ABBREVIATION.search(before):
            return True
    return False


def normalise(strategy: str) -> str:
    """A strategy for counting literal duplicates, without case, spacing and final punctuation."""
    return " ".join(strategy.casefold().split()).rstrip(".!?;, ")


def format_plan(strategies: list[str]) -> str:
    """The plan text of K strategies, as the planner is taught to write it."""
    lines = [f"{label}: {strategy}" for label, strategy in zip(LABELS, strategies, strict=False)]
    return "\n".join(lines)


FENCE = re.compile(r"\s*```+([^`]*)$")                 # ```x = 1``` in a line is text
# "```python" inside an open block; any other fence closes it, also "``` This prints 3."
OPENING = re.compile(r"\s*\{?\.?(?:python3?|py)\}?(?:\s*$|\s+[\w-]+=)", re.IGNORECASE)
PYTHON_TAGS = ("python", "python3", "py")


class Block(NamedTuple):
    """A closed ``` block of a reply."""
    tag: str                    # the language that it names, in lower case; "" for none
    code: str


def find_blocks(text: str) -> tuple[list[Block], bool]:
    """The closed ``` blocks after any thought, and whether the reply ends inside a block.

    A block opens at a line that begins with ``` and closes at the next such line. ```python while
    a block is open begins a new one: the old one was never closed.
    """
    blocks: list[Block] = []
    tag, lines = "", None
    for line in cut_thought(text).split("\n"):
        fence = FENCE.match(line)
        if fence and (lines is None or OPENING.match(fence[1])):
            tag, lines = language(fence[1]), []
        elif fence:
            blocks.append(Block(tag, dedent(lines)))
            lines = None
        elif lines is not None:
            lines.append(line)
    return blocks, lines is not None


def language(info: str) -> str:
    words = re.findall(r"\w+", info.lower())
    return words[0] if words else ""


def dedent(lines: list[str]) -> str:
    """The lines without the indentation of the first, which a block inside a list has."""
    first = next((line for line in lines if line.strip()), "")
    margin = len(first) - len(first.lstrip())
    return "\n".join(line[min(margin, len(line) - len(line.lstrip())):] for line in lines)


def extract_code(text: str, fn_name: str | None = None) -> str | None:
    """The program of a reply, or None. One rule for every method; the first that applies:

    1. where the problem asks for a function, the last block that defines it: "```python, the
       function, ``` Example usage: ```python, a call, ```" gives the function
    2. the last block tagged python or py: a sample output that follows is no program
    3. the last block without a tag that compiles

    Only closed blocks after any thought count (a reply cut at its length limit is no program), and
    of those only blocks tagged python or py, or without a tag.
    """
    blocks, _ = find_blocks(text)
    blocks = [block for block in blocks if block.code.strip()]
    tagged = [block.code for block in blocks if block.tag in PYTHON_TAGS]
    untagged = [block.code for block in blocks if not block.tag]
    if fn_name:
        definition = re.compile(rf"^\s*(?:async\s+)?def\s+{re.escape(fn_name)}\b", re.MULTILINE)
        for block in reversed(blocks):
            if block.tag in ("", *PYTHON_TAGS) and definition.search(block.code):
                return block.code
    if tagged:
        return tagged[-1]
    for code in reversed(untagged):
        if compiles(code):
            return code
    return None


def compiles(code: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")             # about escapes in the program's strings
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


LIST_ITEM = re.compile(r"[\s*]*\d+\s*[.):]\**\s*(\S.*)|\s*[-*]\s+(\S.*)")


def parse_list(text: str) -> list[str]:
    """The items of a numbered or dashed list, one a line."""
    matches = [LIST_ITEM.match(line) for line in cut_thought(text).split("\n")]
    return [(match[1] or match[2]).strip() for match in matches if match]
