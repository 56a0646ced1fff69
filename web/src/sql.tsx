// SQL with its words in colours.

const KEYWORDS = new Set(
  ("select from where group by having order limit as and or not in is null like ilike between case when then else end " +
    "cast interval filter distinct union all with true false exists asc desc on join left inner over partition").split(" "),
);
const TOKEN = /(--[^\n]*|\/\*[\s\S]*?\*\/)|('(?:[^']|'')*')|(\b\d+(?:\.\d+)?\b)|([A-Za-z_][A-Za-z_0-9]*)(?=(\s*\()?)|("(?:[^"]|"")*")/g;

export function Sql({ text }: { text: string }) {
  const parts = [];
  let done = 0;
  for (const found of text.matchAll(TOKEN)) {
    const [whole, comment, string, number, word, call] = found;
    parts.push(text.slice(done, found.index));
    done = found.index + whole.length;
    const isKeyword = word && KEYWORDS.has(word.toLowerCase());
    const kind = comment ? "comment" : string ? "string" : number ? "number" : isKeyword ? "keyword" : word && call ? "call" : "";
    parts.push(kind ? <span class={kind}>{whole}</span> : whole);
  }
  parts.push(text.slice(done));
  return (
    <pre class="sql" tabIndex={0}>
      <code>{parts}</code>
    </pre>
  );
}
