// The last records of a topic, and dead letters by their reason.
import { useState } from "preact/hooks";
import { useAsked, type Description, type Payload, type RecordList, type RecordShown } from "./api";
import { bytes, clock, count, plural } from "./format";
import { Section } from "./parts";

interface Choice {
  topic: string;
  role: string;
}

export function topicsOf(description: Description): Choice[] {
  const sources = description.sources.map((source) => ({ topic: source.topic, role: "source" }));
  const sinks = description.sinks.flatMap((sink) => (sink.topic ? [{ topic: sink.topic, role: "refined" }] : []));
  return [
    ...sources,
    ...sinks,
    { topic: description.late_topic, role: "late" },
    { topic: description.dead_topic, role: "dead letters" },
  ];
}

const recordsPath = (name: string, topic: string, limit: number) =>
  `/api/v1/topologies/${encodeURIComponent(name)}/records?topic=${encodeURIComponent(topic)}&limit=${limit}`;

export function Records({ description }: { description: Description }) {
  const choices = topicsOf(description);
  const [topic, setTopic] = useState(choices[0]?.topic ?? "");
  const [filter, setFilter] = useState("");
  return (
    <Section title="Records" note="The last 50, the latest first, as committed">
      <div class="controls">
        <label>
          Topic{" "}
          <select value={topic} onChange={(event) => setTopic(event.currentTarget.value)}>
            {choices.map((choice) => (
              <option key={choice.topic} value={choice.topic}>
                {choice.topic} ({choice.role})
              </option>
            ))}
          </select>
        </label>
        <label>
          Contains{" "}
          <input type="search" value={filter} placeholder="text in key, value or headers" onInput={(event) => setFilter(event.currentTarget.value)} />
        </label>
      </div>
      <Tail key={topic} name={description.name} topic={topic} filter={filter} />
    </Section>
  );
}

function Tail({ name, topic, filter }: { name: string; topic: string; filter: string }) {
  const asked = useAsked<RecordList>(recordsPath(name, topic, 50));
  if (!asked.value) return <p class="quiet">{asked.error ?? "Loading …"}</p>;
  const list = asked.value;
  const wanted = filter.toLowerCase();
  const found = list.records.filter((record) => wanted === "" || textOf(record).toLowerCase().includes(wanted));
  return (
    <>
      {asked.error && <p class="notice bad">{asked.error}</p>}
      {!list.complete && <p class="notice warn">The brokers were slow: these are not all of the last records.</p>}
      <p class="quiet small">
        {list.exists ? `${plural(found.length, "record")} shown, looked up at ${clock(list.looked_at)}` : "The topic does not exist yet."}
      </p>
      <List records={found} />
    </>
  );
}

function textOf(record: RecordShown): string {
  const headers = record.headers.map((header) => `${header.name} ${header.value?.text ?? ""}`);
  return [record.key?.text ?? "", record.value?.text ?? "", ...headers].join("\n");
}

function List({ records }: { records: RecordShown[] }) {
  return (
    <ol class="records">
      {records.map((record) => (
        <li key={`${record.partition}@${record.offset}`}>
          <details>
            <summary>
              <span class="place" title="partition @ offset">
                {record.partition}@{record.offset}
              </span>
              <span class="at">{record.timestamp ? clock(record.timestamp) : ""}</span>
              {record.key && <span class="key">{record.key.text}</span>}
              <span class="start">{record.value ? record.value.text : "tombstone"}</span>
            </summary>
            <dl>
              <Part name="Written">{record.timestamp ?? "no timestamp"}</Part>
              <Part name="Key">{record.key ? <Bytes payload={record.key} /> : "none"}</Part>
              <Part name="Value">{record.value ? <Bytes payload={record.value} /> : "none: a tombstone"}</Part>
              {record.headers.map((header, index) => (
                <Part key={index} name={header.name}>
                  {header.value ? <Bytes payload={header.value} /> : "null"}
                </Part>
              ))}
            </dl>
          </details>
        </li>
      ))}
    </ol>
  );
}

function Part({ name, children }: { name: string; children: preact.ComponentChildren }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

const JSON_TOKEN = /"(?:[^"\\]|\\.)*"|[^\s{}[\],:"]+|[{}[\],:]/g;

/** JSON over several lines. Its tokens stay as they are: parsing would round numbers. */
function pretty(text: string): string {
  try {
    JSON.parse(text);
  } catch {
    return text;
  }
  let depth = 0;
  let out = "";
  const line = () => `\n${"  ".repeat(depth)}`;
  for (const [token] of text.matchAll(JSON_TOKEN)) {
    if (token === "{" || token === "[") {
      depth += 1;
      out += token + line();
    } else if (token === "}" || token === "]") {
      depth -= 1;
      // Nothing stands in what was opened just now.
      out = /[{[]\s*$/.test(out) ? out.trimEnd() + token : out + line() + token;
    } else if (token === ",") {
      out += token + line();
    } else {
      out += token === ":" ? ": " : token;
    }
  }
  return out;
}

function Bytes({ payload }: { payload: Payload }) {
  return (
    <>
      <pre class="bytes">{payload.encoding === "utf8" && !payload.is_cut ? pretty(payload.text) : payload.text}</pre>
      {(payload.is_cut || payload.encoding !== "utf8") && (
        <span class="quiet small">
          {payload.encoding === "utf8" ? "" : "not UTF-8, shown in base64; "}
          {payload.is_cut ? `cut: it has ${bytes(payload.bytes)}` : bytes(payload.bytes)}
        </span>
      )}
    </>
  );
}

function header(record: RecordShown, name: string): string {
  // The last one counts: a redriven record that dies again carries both.
  return record.headers.filter((header) => header.name === name).at(-1)?.value?.text ?? "";
}

export function DeadLetters({ description, total }: { description: Description; total: number | null }) {
  const asked = useAsked<RecordList>(recordsPath(description.name, description.dead_topic, 200));
  const [reason, setReason] = useState<string | null>(null);
  if (!asked.value) return <p class="quiet">{asked.error ?? "Loading …"}</p>;
  const letters = asked.value.records;
  const groups = new Map<string, RecordShown[]>();
  for (const letter of letters) {
    const key = header(letter, "headwater.reason") || "unknown";
    groups.set(key, [...(groups.get(key) ?? []), letter]);
  }
  const sorted = [...groups].sort((a, b) => b[1].length - a[1].length);
  return (
    <Section
      title="Dead letters by reason"
      note={`${count(total)} since the topology began; at most the last 200 are shown`}
    >
      {letters.length === 0 && <p class="quiet">There are none: every record was understood and met its checks.</p>}
      {sorted.length > 0 && (
        <div class="scroll" tabIndex={0} role="region" aria-label="Dead letters by reason">
          <table class="partitions">
            <thead>
              <tr>
                <th scope="col">Reason</th>
                <th scope="col" class="number">Letters</th>
                <th scope="col">Latest</th>
                <th scope="col">From</th>
                <th scope="col">Says</th>
              </tr>
            </thead>
            <tbody>
              {sorted.map(([key, of]) => (
                <tr key={key}>
                  <td>
                    <button type="button" class="link" aria-pressed={reason === key} onClick={() => setReason(reason === key ? null : key)}>
                      {key}
                    </button>
                  </td>
                  <td class="number">{count(of.length)}</td>
                  <td>{of[0].timestamp ? clock(of[0].timestamp) : ""}</td>
                  <td>
                    {header(of[0], "__connect.errors.topic")}/{header(of[0], "__connect.errors.partition")}@
                    {header(of[0], "__connect.errors.offset")}
                  </td>
                  <td class="says">{header(of[0], "__connect.errors.exception.message")}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <List records={reason == null ? letters : (groups.get(reason) ?? [])} />
      <p class="quiet small">
        To send them back, as they were or corrected: <code>headwater dlq redrive</code>; to delete them: <code>headwater dlq purge</code>.
      </p>
    </Section>
  );
}
