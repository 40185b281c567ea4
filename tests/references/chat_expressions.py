"""Expressions whose texts chat_constructs.py records, over the conversation with tool calls."""

# Names of `messages` are those of chat_constructs.py; `q` is a question, `f` a function's schema.
START = "{% set q = messages[0].content %}{% set f = tools[0].function %}"

PLAIN = r"""
tools is iterable
none is iterable
5 is iterable
true is iterable
missing is iterable
'a' is iterable
{} is iterable
{} is sequence
[] is sequence
(1,) is sequence
none is sequence
missing is sequence
'a' is sequence
5 is sequence
f is mapping
none is mapping
missing is mapping
'a' is mapping
'a' is string
none is string
missing is string
1 is number
true is number
true is integer
true is boolean
1 is boolean
1.0 is float
1 is integer
raise_exception is defined
strftime_now is defined
strftime_now is callable
missing is callable
q is callable
none is none
missing is none
missing is defined
missing is undefined
f.nothing is defined
q is lower
q is upper
'ABC' is upper
3 is odd
4 is even
9 is divisibleby(3)
9 is divisibleby 2
q is eq q
1 is sameas 1
true is sameas true
1 is sameas true
q is in [q]
'When' in q
q in messages[0].content
1 in [1, 2]
'name' in f
'x' not in f
missing in [1]
1 in missing
missing|length
none|length
5|length
q|length
'日本🐈'|length
f|length
messages|count
missing|list
missing|join
missing|upper
none|upper
none|trim
true|string
1.5|string
missing|string
missing ~ 'x'
none ~ 'x'
missing + 'x'
none + 'x'
'a' + 1
1 + 1.5
true + 1
true ~ 1
1 == true
1 == 1.0
'1' == 1
none == missing
missing == missing
none == false
[1, 2] == [1, 2]
(1, 2) == [1, 2]
{'a': 1} == {'a': 1.0}
1 < 2 < 3
1 < 2 > 3
'a' < 'b'
'a' < 1
none < 1
missing > 0
[1, 2] < [1, 3]
7 // 2
-7 // 2
7 / 2
6 / 2
7 % 3
-7 % 3
7.5 % 2
2 ** 10
2 ** 0.5
2 ** -1
1 / 0
2 * 3
1.5 * 2
'ab' * 3
3 * 'ab'
'ab' * 0
'ab' * -2
'ab' * 1.5
'ab' * true
[1] * 3
(1, 2) * 2
none * 2
'  ' * (2 - 1) ~ 'x'
'%s' % q
'%s and %s' % ('a', 'b')
'%s' % ('a',)
'%s' % [1, 'a']
'%d%%' % 5
'%05d|%-5s|%5s|%.2f|%x' % (42, 'ab', 'cd', 3.14159, 255)
'%(name)s' % f
'%s' % none
'%s' % true
'%s %s' % ('a',)
'%s' % ('a', 'b')
'%d' % 'a'
'%.3s' % 'abcdef'
'%5.1f|%e' % (2.25, 12345.678)
'%s: %s'|format('a', 1)
'%(a)s %(b)s'|format(a=1, b='x')
'{} {}'.format('a', 1)
'{0} {1} {0}'.format('a', 'b')
'{a} {b}'.format(a=1, b=none)
'{:>5}|{:<5}|{:^5}|{:05d}|{:.2f}|{:,}'.format('a', 'b', 'c', 42, 2.5, 1234567)
'{{}} {}'.format('x')
'{}'.format(true)
'{} {}'.format('a')
'a-b-c'.replace('-', '+')
'a-b-c'.replace('-', '+', 1)
'a-b-c'.replace('-', '+', -1)
'a-b-c'.replace('-', '+', 0)
'abc'.replace('', '-')
'a-b-c'|replace('-', '+')
'a-b-c'|replace('-', '+', 1)
'a-b-c'|replace('-', '+', count=2)
123|replace('2', 'x')
'abc'.removeprefix('a').removesuffix('c')
'abc'.removeprefix('x').removesuffix('y')
'a b c'.partition(' ')
'abc'.partition(' ')
'a b c'.rpartition(' ')
'abc'.rpartition(' ')
'abc'.partition('')
'a b c'.split()
' a  b '.split()
' a  b '.split(' ')
'a,b,c'.split(',', 1)
'a,b,c'.split(',', maxsplit=1)
'a b c'.split(none, 1)
'a,b,c'.rsplit(',', 1)
'a b  c '.rsplit()
' a b  c '.rsplit(none, 1)
'abc'.split('')
''.split()
''.split(',')
'a\nb\r\nc\n'.splitlines()
'a\nb\n'.splitlines(true)
'a\n\nb'.splitlines()
''.splitlines()
'hello world'.title()
"they're x-ray"|title
"they're x-ray".title()
'hELLO wORLD'.capitalize()
'hELLO'|capitalize
'Hello'.swapcase()
'ab'.center(5, '*')
'abc'.center(6)
'abc'|center(7)
'ab'.ljust(4) ~ '|'
'ab'.rjust(4, '0')
'42'.zfill(5)
'-42'.zfill(5)
'a\tb'.expandtabs(4)
'  a '.strip() ~ '|'
'xxaxx'.strip('x')
'xyayx'.lstrip('xy')
'xyayx'.rstrip('xy')
'  a '|trim ~ '|'
'xax'|trim('x')
'abc'.startswith('a')
'abc'.startswith(('x', 'a'))
'abc'.startswith('b', 1)
'abc'.endswith(('c', 'd'))
'abc'.endswith('b', 0, 2)
'abcabc'.find('c')
'abcabc'.rfind('c')
'abcabc'.find('x')
'abcabc'.find('b', 2)
'abcabc'.index('c')
'abcabc'.index('x')
'日本語'.find('語')
'abcabc'.count('b')
'aaa'.count('')
'abc'.upper().lower()
'ß'.upper()
'ΟΔΟΣ'.lower()
'abc'.isalpha()
'123'.isdigit()
''.isdigit()
'a1'.isalnum()
'abc'.islower()
'ABC'.isupper()
' '.isspace()
'Abc Def'.istitle()
'abc'.isascii()
'-'.join(['a', 'b'])
'-'.join([1, 2])
'-'.join('abc')
['a', 1, none]|join('-')
messages|map(attribute='role')|join(',')
'abc'[1]
'abc'[-1]
'abc'[5]
'abc'[::-1]
'abcdef'[1:4]
'abcdef'[-3:]
[1, 2, 3][::2]
[1, 2, 3][5]
messages[-1].content
messages[0]['missing']
messages[0].missing.deeper
missing.deeper
none.deeper
q.missing
f.items()|list|length
f.keys()|list
tools[1].function.values()|list
f.get('name')
f.get('x')
f.get('x', 'y')
f.parameters.properties.stops.items()|list
f.parameters.properties.stops['items']
['a', 'b'].index('b')
['a', 'b'].count('a')
['a'].append('b')
f.pop('name')
f.update({'a': 1})
f|items|list|length
f|dictsort|length
f.parameters.properties|dictsort|map('first')|join(',')
{'b': 1, 'a': 2}|dictsort
{'b': 1, 'a': 2}|dictsort(by='value')
{'b': 1, 'a': 2}|dictsort(reverse=true)
[3, 1, 2]|sort
[3, 1, 2]|sort(reverse=true)
['b', 'A', 'c']|sort
['b', 'A', 'c']|sort(case_sensitive=true)
messages|sort(attribute='role')|map(attribute='role')|list
['a', 'A', 'b']|unique|list
[1, 2, 3]|sum
messages|map(attribute='content')|map('length')|sum
[0.1, 0.2]|sum
[]|sum
[1, 2, 3]|min
[1, 2, 3]|max
[1, 2, 3]|first
[]|first
[]|last
'abc'|first
'abc'|last
'abc'|list
'abc'|reverse
[1, 2]|reverse|list
[1, 2, 3, 4, 5]|batch(2)|list
[1, 2, 3, 4, 5]|batch(2, 0)|list
[1, 2, 3, 4, 5]|slice(2)|list
messages|groupby('role')|map(attribute='grouper')|list
messages|selectattr('role', 'equalto', 'tool')|list|length
messages|rejectattr('role', '==', 'tool')|list|length
messages|selectattr('tool_calls')|list|length
messages|selectattr('tool_calls', 'defined')|list|length
messages|selectattr('role', 'in', ['user', 'tool'])|map(attribute='role')|list
[1, none, 'a']|select|list
[1, 'a', 2]|select('number')|list
[1, 2, 3, 4]|reject('odd')|list
['a', 'b']|reject('equalto', 'a')|list
['a', ' b ']|map('trim')|map('upper')|list
messages|map(attribute='name', default='-')|list
missing|default('x')
''|default('x')
''|default('x', true)
none|default('x')
none|d('x', true)
''|default('x', boolean=true)
missing|default(boolean=true)
missing|default(default_value='y')
''|default(default_value='y', boolean=1)
missing|default(none)
missing|default('x', default_value='y')
missing|default(other='y')
'x'|int(default=5)
'x'|int(default=none)
'ff'|int(base=16)
'0xFf'|int(base=16)
'-0b11'|int(0, 2)
'0o17'|int(base=0)
'0x1f'|int(base=0)
'zz'|int(7, 36)
'9'|int(base=8)
'9.5'|int(base=16)
12|int(base=16)
'1'|int(base=1)
'x'|float(default=1.5)
'x'|float(default=none)
'x'|float(standard=1.5)
'xax'|trim(chars='x')
'xax'|trim(chars=none)
'xax'|trim(letters='x')
'ab'|center(width=7) ~ '|'
'ab'|center(7, width=7)
3.14159|round(precision=2)
3.14159|round(method='floor')
3.14159|round(1, method='ceil')
[3, 1, 2]|sort(true)
['b', 'A', 'c']|sort(false, true)
['b', 'A', 'c']|sort(true, case_sensitive=true)
messages|sort(false, false, 'role')|map(attribute='role')|list
messages|sort(true, attribute='role')|map(attribute='role')|list
[3, 1]|sort(true, reverse=true)
[3, 1]|sort(true, true, none, 1)
['a', 'A', 'b']|unique(true)|list
['a', 'A', 'b']|unique(case_sensitive=1)|list
messages|unique(false, 'role')|map(attribute='role')|list
messages|unique(attribute='role')|list|length
{'b': 1, 'A': 2}|dictsort(true)
{'b': 1, 'a': 2}|dictsort(false, 'value')
{'b': 1, 'a': 2}|dictsort(false, 'key', true)
{'b': 1, 'a': 2}|dictsort(false, by='value', reverse=true)
['b', 'A']|min
['b', 'A', 'B', 'a']|max(true)
['b', 'A', 'B', 'a']|min(true)
(messages|max(false, 'role')).role
(messages|min(attribute='role')).role
[1, 2, 3]|batch(linecount=2)|list
[1, 2, 3]|batch(2, fill_with=0)|list
[1, 2, 3]|slice(slices=2)|list
[1, 2, 3]|slice(2, fill_with='-')|list
messages|groupby(attribute='role')|map(attribute='grouper')|list
messages|groupby('name', default='-')|map(attribute='grouper')|list
messages|groupby('name', '-')|map(attribute='grouper')|list
['a', 'b']|join(d='-')
messages|join(', ', attribute='role')
messages|join(', ', 'role')
messages|join(attribute='role')
[{'n': 1}, {'n': 2}]|sum(attribute='n', start=10)
[{'n': 1}, {'n': 2}]|sum('n', 10)
[1, 2]|sum(start=5)
'aaa'|replace('a', 'b', count=2)
'aaa'|replace(old='a', new='b')
'1e+16 1e16'|replace(1e16, 1.5)
'a\nb'|indent(2, first=true)
'a\nb'|indent(2, 1)
'foo bar baz qux'|truncate(9)
'foo bar baz qux'|truncate(9, true)
'foo bar baz qux'|truncate(11)
'foo bar baz qux'|truncate(11, false, '...', 0)
'foo bar baz qux'|truncate(length=9, end='~', leeway=0)
'foo bar baz qux'|truncate(9, killwords=true, leeway=0)
'foobarbazqux'|truncate(6, leeway=0)
'äöü äöü äöü äöü'|truncate(6, leeway=0)
'foo bar'|truncate(2)
'foo'|truncate
none|truncate
[1]|truncate(3)
'a b/c?d=é&f~'|urlencode
{'a b': 'c/d', 'é': 1}|urlencode
[('a', 1.5), ('b', none)]|urlencode
['ab', 'c']|urlencode
12|urlencode
'<a & "b">'|forceescape
'<a>'|e|forceescape
'<a>'|e|e
1|filesizeformat
0|filesizeformat
999|filesizeformat
1000|filesizeformat
1500000|filesizeformat
1024|filesizeformat(true)
1500000|filesizeformat(binary=true)
'2048'|filesizeformat
1e30|filesizeformat
12.7|filesizeformat
'x'|filesizeformat
{% set j = joiner() %}{% for m in messages %}{{ j() }}{{ m.role }}{% endfor %}
{% set j = joiner('|') %}{{ j() }}{{ j() }}{{ j() }}
{% set j = joiner(sep=' - ') %}{{ j() }}a{{ j() }}b
joiner is callable
'12'|int + 1
'x'|int
'x'|int(7)
'1.5'|float
3.7|int
3.14159|round(2)
2.5|round
3|round
-2.5|abs
'a b_c d-e'|wordcount
'a\nb\n\nc'|indent
'a\nb\n\nc\n'|indent(2)
'a\nb'|indent(2, true)
'a\n\nb'|indent(width=2, first=true, blank=true)
'a\nb'|indent('> ')
''|indent(2)
'<a href="x">&\'</a>'|escape
'<b>'|e
'<b>'|safe
f|tojson
f|tojson(indent=2)
f|tojson(indent=4)|indent(2)
messages[1].tool_calls|tojson
{'a': 'é\u2028🐈"\\\n\x7f', 'b': [1.0, 1e20, 1e-7, true, none]}|tojson
{'a': 'é🐈<&>'}|tojson(ensure_ascii=true)
{'b': 1, 'a': {'d': 1, 'c': 2}}|tojson(sort_keys=true)
{'b': 1, 'a': [1, 2]}|tojson(separators=(',', ':'))
{'b': 1, 'a': [1, 2]}|tojson(indent=2, separators=(',', ':'))
[]|tojson(indent=2)
{}|tojson(indent=2)
{'a': []}|tojson(indent=2)
q|tojson
missing|tojson
1.0|tojson
[missing]|tojson
['a', none, true, 1.0, 'it\'s', "\"", {'b': (1,)}]
('a',)
{'a': 'b'}
1e20
1e16
0.00001
1.0
100000000000000000000
1_000
'\x41\u00e9\t\d'
'a' 'b'
'a' if true
'a' if false
'a' if false else 'b'
not missing
not none or 1
none or 'x'
'' and 'x'
[] or {}
1 if messages else 2
namespace(a=1).a
dict(a=1, b=2)
dict(a=1).items()|list
range(3)|list
range(1, 10, 3)|list
[][::-1]
''[::-1]
[1, 2, 3][::-1]
[1, 2, 3][-2:]
[1, 2, 3][:-1]
[1, 2, 3][5:]
[1, 2, 3][2:0:-1]
'日本語'[-2:]
(1, 2, 3)[1:]
[1, 2, 3][::0]
[1e20, {'a': 1e-7}]
[1e20] ~ ''
[1.5, none]|string
'4.7'|int
none|int
none|float(1.5)
' 7 '|int
true|int
'a'|e|e
[1, 2] + [3]
(1,) + (2,)
-1
- 2 ** 2
1 - -1
true and not false
'a' ~ 'b' == 'ab'
1 + 1 ~ 2
[[1, 2], [3]]|map('length')|list
[{'a': {'b': 1}}]|map(attribute='a.b')|list
'%s' is string
'x'.__class__
q.__class__.__mro__
'a,b'|replace(',', '\n')
'abc' | upper | lower | title
'a' is in 'abc'
1 is lt 2
'ab' is ge 'aa'
'a' is not none
q is not string
not 'a' is string
not 'x' in 'abc'
'a|b'.split('|')|first
'tool_calls' in messages[1]
messages[1]['tool_calls'][0]['function']['arguments'].to
messages[1].tool_calls[0].function.arguments|items|list
loop is defined
namespace is defined
""".strip().split("\n")

# What takes more than an expression.
LONG = r"""
{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.cycle('a', 'b') }};{% endfor %}
{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined else '-' }}>{{ loop.nextitem.role if not loop.last else '-' }};{% endfor %}
{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{% else %}none{% endfor %}
{% for m in messages if m.role == 'x' %}{{ m.content }}{% else %}none{% endfor %}
{% for m in missing %}x{% else %}nothing{% endfor %}
{% set x = none %}{% for m in x %}y{% endfor %}
{% for k, v in tools[0].function.items() %}{{ k }}={{ v is mapping }};{% endfor %}
{% for k in tools[0].function %}{{ k }};{% endfor %}
{% for c in 'abc' %}{{ c }}-{% endfor %}
{% for a, b in [(1, 2), [3, 4]] %}{{ a + b }},{% endfor %}
{% for m in messages[1:] %}{% if m.role == 'tool' %}{% continue %}{% endif %}{{ m.role }}{% if loop.index == 4 %}{% break %}{% endif %}{% endfor %}
{% set ns = namespace(n=0, found=false) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if m.role == 'tool' %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.n }}{{ ns.found }}
{% set x = 1 %}{% for m in messages %}{% set x = 2 %}{% endfor %}{{ x }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}
{% set text %}a{{ 1 + 1 }}b{% endset %}{{ text }}|{{ text|length }}
{% set text | upper | trim %} ab {% endset %}{{ text }}
{% macro f(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }}{{ f(1, c=3) }}{{ f(1, 2, 3) }}{{ f() }}
{% macro f(a) %}<{{ a }}>{{ caller() }}</{{ a }}>{% endmacro %}{% call f('x') %}y{% endcall %}
{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}
{% macro f() %}  a  {% endmacro %}{{ f()|trim }}{{ f() is string }}
{% macro f(s) %}{% for k in s %}{{ k }}{% if s[k] is mapping %}({{ f(s[k]) }}){% endif %}{% endfor %}{% endmacro %}{{ f({'a': {'b': {'c': 1}}}) }}
{% filter upper %}ab{{ 'c' }}{% endfilter %}
{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a }}
{% if messages and messages[0].role == 'user' and not missing %}a{% elif x %}b{% else %}c{% endif %}
{% generation %}a{% endgeneration %}b
{%- if true -%} a {%- endif -%} b
{% if true +%} a {% endif %} b
    {% if true %}   a
    {% endif %}
  b
{#- c -#} a {# d #}
 b
{% raw %}{{ a }}{% endraw %}
{%- set x = {'a': [1, {'b': 'c'}]} -%}{{ x.a[1].b }}{{ x['a'][0] }}
{{ raise_exception('no') }}
{% if false %}{{ raise_exception('no') }}{% endif %}ok
{% if strftime_now is defined %}{% set d = strftime_now('%%') %}{% else %}{% set d = 'x' %}{% endif %}{{ d }}
{% for t in tools %}{% for name, p in t.function.parameters.properties|items %}{{ name }}: {{ p.type }}{% if p.enum is defined %} {{ p.enum|join('|') }}{% endif %}{% if name in t.function.parameters.required %}!{% endif %}{{ ', ' if not loop.last }}{% endfor %};{% endfor %}
{% set m = messages[0] %}{{ m.role ~ ':' ~ m['content'] }}{{ m.content.split(' ')[0] }}{{ (m.content|trim).upper() }}
{% set last = (messages|selectattr('role', 'equalto', 'user')|list)[-1] %}{{ last.content }}
{% set ns = namespace(items=[]) %}{% for m in messages %}{% set ns.items = ns.items + [m.role] %}{% endfor %}{{ ns['items']|join(',') }}
{{ messages|map(attribute='content')|select('string')|map('length')|list }}
{% for g in messages|groupby('role') %}{{ g.grouper }}{{ g.list|length }};{% endfor %}
{% for role, group in messages|groupby('role') %}{{ role }}{{ group|length }};{% endfor %}
{% for m in [[1, [2, [3]]]] recursive %}{% if m is iterable %}({{ loop(m) }}){% else %}{{ m }}{% endif %}{% endfor %}
{% for i in range(3) %}{% if loop.changed(i // 2) %}{{ i }}{% endif %}{% endfor %}
{{ '' }}{% if messages[0]['content'] is string %}s{% endif %}{% if messages[0]['content'] is not string %}n{% endif %}
{% for d in tools[0]['function']['parameters']['properties'].values() %}{{ d.get('description', 'no') }};{% endfor %}
{% set x = tools[0].function.parameters.properties.stops %}{% for k, v in x.items() %}{{ k }}{% endfor %}{% if x.items %}m{% endif %}{% if x['items'] %}i{% endif %}{% if tools[1].function.items %}m{% endif %}
{%- macro p(x) -%}
{%- if x is mapping -%}{%- for k, v in x|dictsort -%}{{ k }}={{ p(v) }},{%- endfor -%}
{%- elif x is string -%}"{{ x }}"
{%- elif x is iterable -%}[{%- for i in x -%}{{ p(i) }}{%- if not loop.last %}, {% endif -%}{%- endfor -%}]
{%- else -%}{{ x }}{%- endif -%}
{%- endmacro -%}
{{ p(messages[1].tool_calls[0].function.arguments) }}
""".strip()


def long_ones():
    """Each begins at a line with a tag, unless the line before leaves one open."""
    out, depth = [], 0
    for line in LONG.split("\n"):
        if depth == 0:
            out.append(line)
        else:
            out[-1] += "\n" + line
        depth = balance(out[-1])
    return out


def balance(text):
    import re

    # Templates of several lines, by the tags that they leave open.
    opened = len(re.findall(r"\{%[-+]? *(?:for|if|macro|with|filter|call|raw|generation|set \w+(?: \|[^%]*)?(?= *[-+]?%\}))", text))
    closed = len(re.findall(r"\{%[-+]? *end", text))
    ended = text.count("{#") == text.count("#}")
    waits = text.endswith("endif %}") and text.startswith("    ") or text.endswith("{# d #}")
    waits = waits or text.endswith("{%- endmacro -%}")
    return max(opened - closed, 0) + (not ended) + waits


def plain_ones():
    out = []
    for line in PLAIN:
        if out and out[-1].endswith("\\"):
            out[-1] += "\n" + line
        else:
            out.append(line)
    return out


EXPRESSIONS = [START + "{{ " + line + " }}" for line in plain_ones()] + long_ones()
