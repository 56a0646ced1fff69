//! Topologies that are valid, or nearly, and too much: deep, long, many, or growing as they are read.

/// A topology of one view, with an expression in it.
fn with(expression: &str) -> String {
    file(&format!("select a, {expression} as x, t from s"))
}

fn file(sql: &str) -> String {
    let sql = sql.replace('\n', "\n    ");
    format!(
        "name: n\nsources:\n  s: {{topic: t, format: json, columns: {{a: bigint, b: varchar, c: double, t: timestamp}}, event_time: t}}\nviews:\n  v: |\n    {sql}\nsinks:\n  v: {{topic: {{name: o}}}}\n"
    )
}

fn check(expression: &str) -> String {
    format!(
        "name: n\nsources:\n  s: {{topic: t, format: json, columns: {{a: bigint, t: timestamp}}}}\nchecks:\n  s: [{{name: c, expect: \"{expression}\"}}]\nviews: {{v: select a from s}}\nsinks: {{v: {{topic: {{name: o}}}}}}\n"
    )
}

fn nested(open: &str, inside: &str, close: &str, times: usize) -> String {
    [&open.repeat(times), inside, &close.repeat(times)].concat()
}

/// Views that each read the one before, in an order in which none is ready when it is first looked at.
fn chained(views: usize) -> String {
    let mut text =
        "name: n\nsources:\n  s: {topic: t, format: json, columns: {a: bigint}}\nviews:\n".to_owned();
    for at in 0..views {
        let from = if at + 1 == views { "s".to_owned() } else { format!("v{:05}", at + 1) };
        text.push_str(&format!("  v{at:05}: select a from {from}\n"));
    }
    text.push_str("sinks: {v00000: {topic: {name: o}}}\n");
    text
}

/// Anchors that each hold the one before, ten times over.
fn laughs(levels: usize) -> String {
    let mut text =
        "name: n\nsources: {}\nx0: &x0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for at in 1..=levels {
        let before = format!("*x{}", at - 1);
        text.push_str(&format!("x{at}: &x{at} [{}]\n", vec![before; 10].join(", ")));
    }
    text
}

/// An anchor of a long text that is named many times, where texts belong.
fn repeated(length: usize, times: usize) -> String {
    let keys: Vec<String> = (0..times).map(|_| "*k".to_owned()).collect();
    let sink = format!("v: {{topic: {{name: &k {}, key: [{}]}}}}", "k".repeat(length), keys.join(", "));
    format!(
        "name: n\nsources:\n  s: {{topic: t, format: json, columns: {{a: bigint}}}}\nviews: {{v: select a from s}}\nsinks: {{{sink}}}\n"
    )
}

fn many(what: impl Fn(usize) -> String, times: usize, between: &str) -> String {
    (0..times).map(what).collect::<Vec<_>>().join(between)
}

pub fn all() -> Vec<Vec<u8>> {
    let mut all: Vec<String> = Vec::new();
    // As long as a view may be: it is planned, and so is not deep.
    let at_most = with(&format!("a in ({})", many(|at| at.to_string(), 2_000, ", ")));
    all.push(at_most);
    all.push(with(&"cast(".repeat(300)));
    all.push(with(&"substring(abs(array[".repeat(100)));
    // Where one syntax does not fit, the parser tries another with all that is in it.
    for open in [
        "interval tumble(s, t, ",
        "interval ",
        "interval day ",
        "interval second(3) ",
        "interval (",
        "cast(interval ",
        "not (",
        "case (",
        "trim(",
        "extract(",
        "struct(",
        "match(",
        "exists (",
        "array(",
        "map {'a': ",
        "{fn abs(",
        "a in ((",
        "(a, b) -> (",
        "f(a := ",
        "a in ((select a from s where ",
        "(select a from s where a in ((",
        "count(*) filter (where ",
        "decimal(",
    ] {
        all.extend([10, 20, 40, 450, 5_000].map(|times| with(&open.repeat(times))));
    }
    for open in
        ["(", "((select * from ", "((select a from s where a in ", "(select * from s join (", "x, (values ("]
    {
        all.extend([10, 20, 40, 400].map(|times| file(&["select a from ", &open.repeat(times)].concat())));
    }
    for open in ["with x (", "with x as (", "with x ((", "explain ", "(", "from ("] {
        all.extend([10, 20, 40, 400].map(|times| file(&open.repeat(times))));
    }
    for times in [40, 300, 5_000, 20_000] {
        all.push(with(&nested("(", "a", ")", times)));
        all.push(with(&["a", &" + a".repeat(times)].concat()));
        all.push(with(&["a", &" || b".repeat(times)].concat()));
        all.push(with(&format!("({})", many(|at| format!("a = {at}"), times / 2, " or "))));
        all.push(with(&format!("({})", many(|_| "a is null".into(), times / 2, " and "))));
        all.push(with(&["- ".repeat(times), "a".into()].concat()));
        all.push(with(&["not ".repeat(times), "true".into()].concat()));
        all.push(with(&["a", &" is null".repeat(times)].concat()));
        all.push(with(&["a", &"::bigint".repeat(times)].concat()));
        all.push(with(&["a", &"[1]".repeat(times)].concat()));
        all.push(with(&["a", &".a".repeat(times)].concat()));
        all.push(with(&nested("abs(", "a", ")", times)));
        all.push(with(&nested("case when a > 1 then ", "a", " end", times)));
        all.push(with(&format!(
            "case {} end",
            many(|at| format!("when a = {at} then {at}"), times / 4, " ")
        )));
        all.push(with(&format!("a in ({})", many(|at| at.to_string(), times, ","))));
        all.push(with(&format!("coalesce({})", many(|_| "a".into(), times, ","))));
        all.push(with(&format!("'{}'", "x".repeat(times))));
        all.push(with(&"1".repeat(times)));
        all.push(with(&format!("x'{}'", "1".repeat(times))));
        all.push(with(&format!("cast(a as {})", nested("array<", "bigint", ">", times))));
        all.push(with(&format!("cast(a as bigint{})", "[]".repeat(times))));
        all.push(file(&nested("select * from (", "select * from s", ") as x", times)));
        all.push(file(&["select a from s", &" union all select a from s".repeat(times)].concat()));
        all.push(file(&["select a from s", &", s".repeat(times)].concat()));
        all.push(file(&["select a from s", &" join s on true".repeat(times)].concat()));
        all.push(file(&format!("select {} from s", many(|at| format!("a as a{at}"), times, ", "))));
        all.push(file(
            &[
                "with ".to_owned(),
                many(|at| format!("x{at} as (select a from s)"), times, ", "),
                " select a from s".into(),
            ]
            .concat(),
        ));
        all.push(file(&nested("with x as (", "select a from s", ") select a from x", times)));
        all.push(file(&["explain ".repeat(times), "select a from s".into()].concat()));
        all.push(check(&["a = 1", &" or a = 1".repeat(times)].concat()));
        all.push(check(&nested("(", "a = 1", ")", times)));
        all.push(["name: ".to_owned(), nested("[", "a", "]", times)].concat());
        all.push(["name: ".to_owned(), nested("{a: ", "a", "}", times)].concat());
        all.push(["- ".repeat(times), "a".into()].concat());
        all.push(many(|at| format!("{}a:", " ".repeat(at.min(2_000))), times.min(2_000), "\n"));
        all.push(file("select a from s").replace("c: double", &format!("c: 'bigint{}'", "[]".repeat(times))));
        all.push(
            file("select a from s")
                .replace("c: double", &format!("c: '{}'", nested("struct<a ", "bigint", ">", times))),
        );
        all.push(
            file("select a from s").replace("c: double", &many(|at| format!("c{at}: double"), times, ", ")),
        );
        all.push(file("select a from s").replace("c: double", &format!("c: '{}'", "x".repeat(times))));
        all.push(
            file("select a from s")
                .replace("name: n\n", &format!("name: n\ngrace: '{}h'\n", "9".repeat(times))),
        );
        all.push(file(&format!("select a from {}", "y".repeat(times))));
        all.push(file(&format!("select {} from s", many(|at| format!("y{at}"), times, ", "))));
    }
    for expression in [
        "repeat('x', 2000000000)",
        "repeat(repeat('x', 100000), 100000)",
        "lpad('x', 2000000000)",
        "rpad('x', 2000000000, 'y')",
        "regexp_replace('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', '(a*)*b', 'c')",
        "regexp_like('a', '(((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000})')",
        "factorial(1000000)",
        "power(10, 1000000)",
        "9223372036854775807 + 1",
        "-9223372036854775808 / -1",
        "1 / 0",
        "1 % 0",
        "date_bin(interval '0 seconds', t)",
        "cast('99999-01-01' as timestamp)",
        "t + interval '999999999 years'",
        "to_char(t, '%Z%Q')",
        "translate(b, 'a', '')",
        "split_part(b, ',', -9223372036854775808)",
        "substr(b, -9223372036854775808, 9223372036854775807)",
        "chr(1114112)",
        "round(c, 2147483647)",
        "cast(1e308 as decimal(38,10))",
    ] {
        all.push(with(expression));
    }
    for size in [
        "interval '0 seconds'",
        "interval '-1 hour'",
        "interval '1 month'",
        "interval '999999999 days'",
        "interval ''",
        "'1 hour'",
        "1",
    ] {
        all.push(file(&format!(
            "select window_start, count(*) as n from tumble(s, t, {size}) group by window_start"
        )));
    }
    all.extend([
        chained(100),
        chained(1_000),
        laughs(3),
        laughs(9),
        laughs(200),
        repeated(10_000, 90),
        repeated(50_000, 900),
    ]);
    all.push(repeated(60_000, 20_000));
    all.push(format!(
        "name: n\nsources:\n{}views: {{}}\nsinks: {{}}\n",
        many(|at| format!("  s{at}: {{topic: t, format: jsn, columns: {{}}}}\n"), 1_000, "")
    ));
    all.push(format!(
        "name: n\nsources: {{}}\nviews:\n{}sinks: {{}}\n",
        many(|at| format!("  v{at}: select a from w{at}\n"), 1_000, "")
    ));
    all.into_iter().map(String::into_bytes).collect()
}
