#!/usr/bin/env python3
"""Renders small chat templates as transformers' apply_chat_template does, one feature of Jinja each.

Run in an environment with requirements.txt from this folder:
    python tests/golden/make_chat_templates.py

Writes tests/golden/chat_templates.json:
    {"made_with", "made_on", "now": what strftime_now takes for the time,
     "cases": [{"name", "template", "variables": {what the template is given}, "text" or "error": part of
                the message a caller must see, or null where only the failure matters}]}
The templates were written for this project; they use what published ones use. transformers compiles with
trim_blocks, lstrip_blocks and loop controls, in Jinja's immutable sandbox, and adds raise_exception,
strftime_now and its own tojson, which escapes nothing and keeps the order of keys.
"""

import datetime
import importlib.metadata
import json
import sys
from pathlib import Path

import jinja2
from transformers.utils import chat_template_utils

HERE = Path(__file__).resolve().parent
NOW = datetime.datetime(2026, 2, 3, 4, 5, 6)

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Where's the \"gate\"? "},
    {"role": "assistant", "content": "At pier 2.\n"},
    {"role": "user", "content": "Thanks 🚢 <b>&</b>"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "next_boat",
            "description": "When the next boat leaves <here> & there",
            "parameters": {"type": "object", "properties": {"pier": {"type": "integer"}}, "required": ["pier"]},
        },
    }
]

# name: (template, variables beside messages; "messages" among them replaces TALK)
TEMPLATES = {
    "concatenation": (
        "{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] + '\\n' }}{% endfor %}",
        {},
    ),
    "attributes and filters": (
        "{% for m in messages %}{{ m.role | upper }}: {{ m.content | trim }}|{{ m.content | length }}\n{% endfor %}",
        {},
    ),
    "trim_blocks and lstrip_blocks": (
        "{% for message in messages %}\n    {% if message.role == 'user' %}\n  U {{ message.content }}\n"
        "    {% else %}\n  O {{ message.content }}\n    {% endif %}\n{% endfor %}\nend\n",
        {},
    ),
    "whitespace control": (
        "{%- for message in messages -%}\n  {{- message.role -}}\n  {{- ' ' -}}\n{%- endfor -%}\n  . ", {},
    ),
    "a generation prompt": (
        "{{ messages[-1].content }}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}",
        {"add_generation_prompt": True},
    ),
    "special tokens": ("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", {"bos_token": "<s>", "eos_token": "</s>"}),
    "a namespace set in a loop": (
        "{% set ns = namespace(system='', turns=0) %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set ns.system = m.content %}{% else %}{% set ns.turns = ns.turns + 1 %}{% endif %}{% endfor %}"
        "{{ ns.system }} {{ ns.turns }}",
        {},
    ),
    "a set in a loop does not leave it": (
        "{% set last = 'none' %}{% for m in messages %}{% set last = m.role %}{% endfor %}{{ last }}", {},
    ),
    "loop variables": (
        "{% for m in messages %}{{ loop.index0 }}/{{ loop.index }}/{{ loop.length }}"
        "{{ ' first' if loop.first }}{{ ' last' if loop.last }}{{ ' after ' + loop.previtem.role if not loop.first }};"
        "{% endfor %}",
        {},
    ),
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }} "
        "{% if loop.index0 == 2 %}{% break %}{% endif %}{% endfor %}",
        {},
    ),
    "slices and tests": (
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}"
        "{% endif %}{{ rest | length }} {{ messages[::-1][0].role }} {{ rest[-1] is mapping }} "
        "{{ rest[0].content is string }} {{ rest is iterable }} {{ 3 is odd }} {{ none is none }}",
        {},
    ),
    "is defined": (
        "{{ 'tools' if tools is defined and tools is not none and tools else 'no tools' }}, "
        "{{ 'set' if add_thinking is defined else 'unset' }}, {{ missing | default('fallback') }}",
        {},
    ),
    "an undefined variable is empty": ("<{{ nothing }}>{% if nothing %}yes{% else %}no{% endif %}", {}),
    "a macro": (
        "{% macro turn(role, text, close=true) %}<{{ role }}>{{ text }}{% if close %}</{{ role }}>{% endif %}{% endmacro %}"
        "{% for m in messages %}{{ turn(m.role, m.content | trim, close=not loop.last) }}{% endfor %}",
        {},
    ),
    "tojson": ("{{ tools | tojson }}", {"tools": TOOLS}),
    "tojson with an indent": ("{{ tools[0] | tojson(indent=2) }}", {"tools": TOOLS}),
    "tojson of text": ("{{ messages[3].content | tojson }} {{ 1.5 | tojson }} {{ true | tojson }} {{ none | tojson }}", {}),
    "items of a mapping": (
        "{% for key, value in tools[0].function.parameters.properties.items() %}{{ key }}={{ value.type }}{% endfor %}"
        "{% for key, value in {'b': 1, 'a': 2} | dictsort %} {{ key }}{{ value }}{% endfor %}",
        {"tools": TOOLS},
    ),
    "methods of strings": (
        "{{ ' x y '.strip() }}|{{ 'a,b'.split(',')[1] }}|{{ 'think</think>answer'.split('</think>')[-1].lstrip('\\n') }}"
        "|{{ 'abc'.startswith('ab') }}|{{ 'abc'.endswith('ab') }}|{{ 'a-b'.replace('-', '+') }}|{{ 'aB'.upper() }}"
        "|{{ 'title case'.title() }}|{{ 'xxaxx'.rstrip('x') }}",
        {},
    ),
    "get of a mapping": ("{{ messages[0].get('name', 'nobody') }} {{ messages[0].get('name') }} {{ 'role' in messages[0] }}", {}),
    "content in parts": (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{% if part['type'] == 'text' %}{{ part.text }}{% elif part.type == 'image' %}<image>{% endif %}{% endfor %}"
        "{% endif %};{% endfor %}",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "image"}, {"type": "text", "text": "?"}]},
                {"role": "assistant", "content": "A boat."},
            ]
        },
    ),
    "selectattr, map and join": (
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | map('trim') | join(' / ') }} "
        "{{ messages | rejectattr('role', 'equalto', 'user') | list | length }}",
        {},
    ),
    "strftime_now": ("Today is {{ strftime_now('%d %b %Y') }}, {{ strftime_now('%Y-%m-%d %H:%M:%S') }}.", {}),
    "strftime_now where it is defined": (
        "{% if strftime_now is defined %}{% set date = strftime_now('%B %d, %Y') %}{% else %}{% set date = '26 Jul 2024' %}"
        "{% endif %}{{ date }}",
        {},
    ),
    "arithmetic and comparison": ("{{ 7 // 2 }} {{ 7 % 2 == 1 }} {{ 2 ** 3 }} {{ 'a' ~ 1 ~ none }} {{ 1 < 2 < 3 }} {{ 6 / 4 }}", {}),
    "literals": ("{{ [1, 'two', none, true, {'k': 1.0}] }} {{ (1, 2) }} {{ 'it''s' }}", {}),
    "a comment": ("a{# not\nshown #}b{#- nor this -#} c", {}),
    "raw text": ("{% raw %}{{ not_a_variable }}{% endraw %}", {}),
    "a set block": ("{% set text %}<{{ messages[0].role }}>{% endset %}{{ text }}{{ text }}", {}),
    "a filter block": ("{% filter upper %}quiet {{ messages[0].role }}{% endfilter %}", {}),
    "an else of a loop": ("{% for m in messages if m.role == 'tool' %}{{ m }}{% else %}no tool{% endfor %}", {}),
    "roles that must alternate": (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}{{ m.content }}{% endfor %}",
        {},
    ),
    "raise_exception with text": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported: ' + messages[0].role) }}{% endif %}", {},
    ),
    "raise_exception not reached": ("{% if false %}{{ raise_exception('never') }}{% endif %}fine", {}),
    "an attribute of nothing": ("{{ nothing.content }}", {}),
    "text and a number do not add": ("{{ 'a' + 1 }}", {}),
    "the sandbox keeps data as it is": ("{{ messages.append(1) }}", {}),
    "the sandbox hides what is private": ("{{ messages.__class__.__mro__ }}", {}),
    "a template that does not parse": ("{% for m in messages %}{{ m.content }", {}),
}


class FixedClock(datetime.datetime):
    """What transformers asks for the time."""

    @classmethod
    def now(cls, tz=None):
        return NOW


def main():
    chat_template_utils.datetime = FixedClock
    cases = [render(name, *TEMPLATES[name]) for name in TEMPLATES]
    packages = ("transformers", "jinja2")
    head = {
        "made_with": {"python": sys.version.split()[0], **{p: importlib.metadata.version(p) for p in packages}},
        "made_on": datetime.date.today().isoformat(),
        "now": NOW.isoformat(),
    }

    def compact(value):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    lines = ",\n".join(compact(case) for case in cases)
    text = compact(head)[:-1] + ',"cases":[\n' + lines + "\n]}\n"
    (HERE / "chat_templates.json").write_text(text, encoding="utf-8")
    for case in cases:
        print(case["name"], "->", repr(case.get("text", case.get("error"))))


def render(name, template, variables):
    variables = {"messages": TALK, "add_generation_prompt": False, **variables}
    given = dict(variables)
    messages = given.pop("messages")
    case = {"name": name, "template": template, "variables": variables}
    try:
        (case["text"],), _ = chat_template_utils.render_jinja_template([messages], chat_template=template, **given)
    except jinja2.TemplateError as error:
        raised = "raise_exception" in template
        case["error"] = str(error) if raised else None
    except TypeError:
        case["error"] = None
    return case


if __name__ == "__main__":
    main()
