"""The same SQL in DuckDB: an oracle that is not ours.

  oracle.py records FLIGHTS OUT        the departures as envelopes for `topic produce`, in the order of departure
  oracle.py counts TOPOLOGY FLIGHTS    what becomes of each record live: refined, late and filtered, as JSON
  oracle.py live TOPOLOGY FLIGHTS VIEW TAIL       a refined topic's records (`topic tail --json`) against DuckDB's rows
  oracle.py replay TOPOLOGY FLIGHTS VIEW QUERY    a replayed lake table against DuckDB's rows

Invariant: the queries are the topology's own, read from its file; only what DuckDB spells otherwise is rewritten.
"""

import json
import math
import re
import sys
from decimal import Decimal

import duckdb

PARTITIONS = 4
SHOWN_MAX = 10
# A view's relation, which has two levels of parentheses at most, and its WHERE.
FROM = re.compile(r"^ *from (\((?:[^()]|\([^()]*\))*\)|\w+)(?:\s+where (.*?))?(?=\s+group by|\s*$)", re.S | re.M)
ALIASES = """
create macro initcap(text) as upper(text[1]) || lower(text[2:]);
create macro signum(number) as sign(number)::double;
"""


def connect(flights):
    """Departures as they are produced: `p` is the partition, `n` the place in it, `wm` its watermark from then on."""
    connection = duckdb.connect()
    connection.execute("set timezone = 'UTC'")
    connection.execute(ALIASES)
    connection.execute(f"""
        create table departures as
        with lines as (
            select *, row_number() over () as line
            from read_csv('{flights}', header = true, columns = {{sched_dep: 'TIMESTAMP', dep: 'TIMESTAMP',
                dep_delay: 'DOUBLE', carrier: 'VARCHAR', flight: 'BIGINT', origin: 'VARCHAR', dest: 'VARCHAR'}})
        ), placed as (select *, row_number() over (order by coalesce(dep, sched_dep), line) - 1 as place from lines)
        select * exclude (line, place), place, place % {PARTITIONS} as p, place // {PARTITIONS} as n,
            max(sched_dep) over (partition by place % {PARTITIONS} order by place) - interval '3 hours' as wm
        from placed
    """)
    return connection


def views(topology):
    """The file's views, by name: SQL in blocks."""
    text = open(topology, encoding="utf8").read()
    section = text.split("\nviews:\n")[1].split("\nsinks:\n")[0]
    blocks = re.split(r"^  (\w+): \|\n", section, flags=re.M)[1:]
    return dict(zip(blocks[::2], blocks[1::2]))


def for_duckdb(sql, with_late):
    """`tumble` as a subquery; first and last in the order that they have by definition; avg's values, for `average`."""

    def tumble(match):
        table, column, size, offset = match.group(1), match.group(2), match.group(3), match.group(4) or "interval '0 hours'"
        start = f"time_bucket({size}, {column}, timestamp '1970-01-01' + {offset})"
        derived = table == "hourly"
        columns = "* exclude (window_start, window_end)" if derived else "*"
        windows = f"select {columns}, {start} as window_start, {start} + {size} as window_end from {table}"
        if with_late or derived:
            return f"({windows})"
        return f"(select * from ({windows}) where window_end > wm)"

    sql = re.sub(r"tumble\((\w+), (\w+), (interval '[^']*')(?:, (interval '[^']*'))?\)", tumble, sql)
    sql = re.sub(r"\b(first|last)\((\w+)\)", r"\1(\2 order by sched_dep, p, n)", sql)
    return re.sub(r"\bavg\(", "list(", sql)


def create_views(connection, topology, with_late, wanted=None):
    """Tables of all views, or of one and of those that it reads."""
    sqls = views(topology)
    needed = set(sqls) if wanted is None else {wanted}
    for name in reversed(list(sqls)):
        if name in needed:
            needed.update(other for other in sqls if re.search(rf"\b(from|tumble\() *{other}\b", sqls[name]))
    for name, sql in sqls.items():
        if name in needed:
            connection.execute(f"create table {name} as {for_duckdb(sql, with_late)}")


def closed(connection, view):
    """The windows that the live run has closed: those that every partition's last watermark has passed."""
    least = "(select min(last) from (select max(wm) as last from departures group by p))"
    ends = {"hourly": "window_end", "daily": "day + interval '1 day'", "chosen": "window_start + interval '6 hours'", "typed": "window_end"}
    return f"select * from {view} where {ends[view]} <= {least}" if view in ends else f"select * from {view}"


def average(value):
    """Python's exact sum: DuckDB's average of floats depends on their order."""
    if not isinstance(value, list):
        return value
    numbers = [number for number in value if number is not None]
    return math.fsum(numbers) / len(numbers) if numbers else None


def same(ours, theirs):
    """Equal; floats within one unit in the last place, as `average` rounds twice."""
    if isinstance(ours, float) and isinstance(theirs, float):
        return ours == theirs or abs(ours - theirs) <= math.ulp(max(abs(ours), abs(theirs)))
    if isinstance(ours, (int, Decimal)) and isinstance(theirs, (int, Decimal)):
        return type(ours) is bool and ours is theirs or type(ours) is not bool and ours == theirs
    return type(ours) is type(theirs) and ours == theirs


def kinds(rows):
    """The types of each column's values."""
    return [{type(value) for value in column if value is not None} for column in zip(*rows)]


def compare(connection, ours, theirs):
    """Prints the number of rows if both queries give the same, else what differs and fails."""
    wanted = connection.execute(theirs)
    names = [column[0] for column in wanted.description]
    wanted = [tuple(average(value) for value in row) for row in wanted.fetchall()]
    types = {name: kind for name, kind, *_ in connection.execute(f"describe ({ours})").fetchall()}
    utc = lambda name: "::timestamp" if types[name] == "TIMESTAMP WITH TIME ZONE" else ""
    columns = ", ".join(f'"{name}"{utc(name)}' for name in names)
    got = connection.execute(f"select {columns} from ({ours})").fetchall()
    # Rows are told apart by what is exact, so that a float's last bit does not decide which are compared.
    exact = [i for i in range(len(names)) if not any(isinstance(row[i], float) for row in wanted)]
    by_key = lambda row: repr([row[i] for i in exact])
    wanted.sort(key=by_key)
    got.sort(key=by_key)
    differing = {}
    alike = kinds(got) == kinds(wanted)
    for mine, other in zip(got, wanted):
        if alike and mine == other:
            continue
        for name, left, right in zip(names, mine, other):
            if not same(left, right):
                differing.setdefault(name, []).append((left, right, mine))
    if len(got) != len(wanted) or differing:
        print(f"{len(got)} rows instead of {len(wanted)}")
        for name, cells in differing.items():
            print(f"{name}: {len(cells)} differ")
            for left, right, row in cells[:SHOWN_MAX]:
                print(f"  ours {left!r}, DuckDB's {right!r} in {row}")
        sys.exit(1)
    print(json.dumps({"rows": len(got)}))


def records(flights, out):
    connection = connect(flights)
    connection.execute(f"""
        copy (
            select p as partition, {{flight: flight, carrier: carrier, origin: origin, dest: dest, dep_delay: dep_delay::BIGINT,
                sched_dep: strftime(sched_dep, '%Y-%m-%dT%H:%M:%SZ'), dep: strftime(dep, '%Y-%m-%dT%H:%M:%SZ')}} as value
            from departures order by place
        ) to '{out}' (format json)
    """)


def counts(topology, flights):
    """The outcome of each record live: refined if a view took it, else late if a view called it late, else filtered."""
    connection = connect(flights)
    create_views(connection, topology, True)
    refined, late = [], []
    for name, sql in views(topology).items():
        found = FROM.search(for_duckdb(sql, True))
        relation, kept = found.group(1), found.group(2) or "true"
        if name == "elsewhere" or "from hourly" in relation:
            continue  # what no sink takes, and what is derived
        rows = f"select place from {relation} where ({kept})"
        if "window_end" in relation:
            refined.append(f"{rows} and window_end > wm")
            late.append(f"{rows} and window_end <= wm")
        else:
            refined.append(rows)
    row = connection.execute(f"""
        with refined as ({' union '.join(refined)}), late as ({' union '.join(late)})
        select count(*), count(*) filter (where place in (from refined)),
            count(*) filter (where place not in (from refined) and place in (from late))
        from departures
    """).fetchone()
    print(json.dumps({"read": row[0], "refined": row[1], "late": row[2], "filtered": row[0] - row[1] - row[2], "dead": 0}))


def live(topology, flights, view, tail):
    """The last value of each key; all values where records have no key."""
    connection = connect(flights)
    create_views(connection, topology, False, view)
    types = {name: kind for name, kind, *_ in connection.execute(f"describe {view}").fetchall()}
    last = {}
    for line in open(tail, encoding="utf8"):
        record = json.loads(line)
        key = json.dumps(record["key"]) if record["key"] is not None else f"{record['partition']}/{record['offset']}"
        if record["value"] is None:
            last.pop(key, None)
        else:
            last[key] = record["value"]
    with open(f"{tail}.values", "w", encoding="utf8") as out:
        for value in last.values():
            out.write(json.dumps(value) + "\n")
    columns = ", ".join(f"\"{name}\": '{'DOUBLE' if kind.endswith('[]') else kind}'" for name, kind in types.items())
    compare(connection, f"select * from read_json('{tail}.values', format = 'nd', columns = {{{columns}}})", closed(connection, view))


def replay(topology, flights, view, query):
    connection = connect(flights)
    create_views(connection, topology, True, view)
    compare(connection, open(query, encoding="utf8").read(), f"select * from {view}")


if __name__ == "__main__":
    {"records": records, "counts": counts, "live": live, "replay": replay}[sys.argv[1]](*sys.argv[2:])
