"""Random JSON schemas, and whether every answer is valid: python schemas_client.py BASE MODEL
[COUNT [SEED]].

The schemas are of what people use: objects with required and optional members, lists, numbers with
bounds, texts with lengths and patterns, choices, constants, references, and what may be null. What is
asked has nothing to do with them: only the grammar leads to a valid answer.
"""

import concurrent.futures
import json
import random
import sys

import jsonschema
import openai

base, model = sys.argv[1], sys.argv[2]
count = int(sys.argv[3]) if len(sys.argv) > 3 else 100
seed = int(sys.argv[4]) if len(sys.argv) > 4 else 1
client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)

WORDS = ["name", "city", "age", "tags", "price", "unit", "note", "kind", "id", "größe", "a b", "$x"]
PATTERNS = ["^[a-z]{2,6}$", "^\\d{3}-\\d{2}$", "^(red|green|blue)$", "^[A-Z][a-z]+$"]


class Schemas:
    """Makes schemas, the same ones for the same seed."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.shared = {}

    def whole(self):
        self.shared = {}
        schema = self.object(0)
        return schema | ({"$defs": self.shared} if self.shared else {})

    def any(self, depth):
        kinds = [self.integer, self.number, self.text, self.boolean, self.choice, self.constant]
        if depth < 3:
            kinds += [self.object, self.list, self.nullable, self.either, self.reference] * 2
        return self.dice.choice(kinds)(depth)

    def object(self, depth):
        names = self.dice.sample(WORDS, self.dice.randint(0 if depth else 1, 4))
        members = {name: self.any(depth + 1) for name in names}
        required = [name for name in names if self.dice.random() < 0.7]
        # An object of whatever members a model thinks of need not end.
        return {"type": "object", "properties": members, "required": required,
                "additionalProperties": False}

    def list(self, depth):
        least = self.dice.randint(0, 2)
        bounds = {"minItems": least, "maxItems": least + self.dice.randint(0, 2)}
        if self.dice.random() < 0.2:
            pair = [self.any(depth + 1), self.any(depth + 1)]
            return {"type": "array", "prefixItems": pair, "items": False, "minItems": 2}
        return {"type": "array", "items": self.any(depth + 1)} | bounds

    def integer(self, _):
        low = self.dice.randint(-1000, 1000)
        bounds = self.dice.choice([
            {},
            {"minimum": low, "maximum": low + self.dice.randint(0, 500)},
            {"exclusiveMinimum": low, "maximum": low + 10},
            {"minimum": 0, "maximum": 99},
        ])
        return {"type": "integer"} | bounds

    def number(self, _):
        low = round(self.dice.uniform(-10, 10), 2)
        if self.dice.random() < 0.3:
            return {"type": "number"}
        return {"type": "number", "minimum": low, "maximum": low + self.dice.choice([0.5, 3, 100])}

    def text(self, _):
        least = self.dice.randint(0, 3)
        return {"type": "string"} | self.dice.choice([
            {"minLength": least, "maxLength": least + self.dice.randint(0, 12)},
            {"pattern": self.dice.choice(PATTERNS), "maxLength": 12},
            {"format": "date"},
            {"format": "uuid"},
        ])

    def boolean(self, _):
        return {"type": "boolean"}

    def choice(self, _):
        values = ["red", "green", 'with "quotes"', "ünïcode", "", 7, -1.5, None, True]
        return {"enum": self.dice.sample(values, self.dice.randint(1, 4))}

    def constant(self, _):
        return {"const": self.dice.choice(["fixed", 42, None, False, {"a": [1, "b"]}, []])}

    def nullable(self, depth):
        inner = self.any(depth + 1)
        if isinstance(inner.get("type"), str):
            return inner | {"type": [inner["type"], "null"]}
        return {"anyOf": [inner, {"type": "null"}]}

    def either(self, depth):
        return {"anyOf": [self.any(depth + 1) for _ in range(self.dice.randint(2, 3))]}

    def reference(self, depth):
        name = f"shared{len(self.shared)}"
        self.shared[name] = {}
        self.shared[name] = self.any(depth + 1)
        return {"$ref": f"#/$defs/{name}"}


def ask(schema):
    form = {"name": "made", "schema": schema, "strict": True}
    done = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Tell me about Paris in JSON."}],
        response_format={"type": "json_schema", "json_schema": form},
        temperature=1.0,
        seed=len(str(schema)),
        max_tokens=1500,
    )
    return done.choices[0]


def check(schema):
    choice = ask(schema)
    assert choice.finish_reason == "stop", (choice.finish_reason, choice.message.content, schema)
    value = json.loads(choice.message.content)
    jsonschema.Draft202012Validator(schema).validate(value)
    return len(choice.message.content)


made = Schemas(seed)
schemas = [made.whole() for _ in range(count)]
for schema in schemas:
    jsonschema.Draft202012Validator.check_schema(schema)
failed = []
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for schema, future in [(schema, pool.submit(check, schema)) for schema in schemas]:
        try:
            future.result()
        except Exception as error:
            failed.append(f"{json.dumps(schema, ensure_ascii=False)}\n{type(error).__name__}: {error}")
print(f"{count - len(failed)} of {count} answers are valid")
if failed:
    sys.exit("\n\n".join(failed[:10]))
