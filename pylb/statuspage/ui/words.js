// Numbers and times in words. Pure.

/** "4 s", "3 min", "5 h", "2 d". */
export function span(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= 2 * size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.max(0, Math.floor(seconds))} s`;
}

/** The port of a frontend: "443", "443/udp", "20000-20099". */
export function portOf(frontend) {
  const ports = frontend.last_port ? `${frontend.port}-${frontend.last_port}` : String(frontend.port);
  return frontend.protocol ? `${ports}/${frontend.protocol}` : ports;
}

/** "950 B", "1.2 MB": powers of 1000, as network people count. */
export function bytes(number) {
  if (number === null || number === undefined) return "–";
  let value = number;
  for (const unit of ["B", "kB", "MB", "GB", "TB"]) {
    if (value < 999.5 || unit === "TB") return `${unit === "B" || value >= 100 ? Math.round(value) : value.toFixed(1)} ${unit}`;
    value /= 1000;
  }
}

/** "0", "3.4", "120", "45.2k". */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 99950) return `${(value / 1000).toFixed(0)}k`;
  if (value >= 9999.5) return `${(value / 1000).toFixed(1)}k`;
  return value === Math.round(value) || value >= 100 ? String(Math.round(value)) : value.toFixed(1);
}

/** "1 session", "20 sessions". */
export function counted(value, word) {
  return `${number(value)} ${word}${value === 1 ? "" : "s"}`;
}

/** Seconds as "0.4 ms", "12 ms", "1.5 s". */
export function milliseconds(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const ms = seconds * 1000;
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms >= 10 ? Math.round(ms) : ms.toFixed(1)} ms`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "2-digit", month: "short" });

/** Unix time as "14:03:21", whatever the day. */
export function clock(unix) {
  return CLOCK.format(new Date(unix * 1000));
}

/** Its day as "26 Nov"; "" if it is today. */
export function day(unix) {
  const date = new Date(unix * 1000);
  return date.toDateString() === new Date().toDateString() ? "" : DAY.format(date);
}

/** Unix time as "14:03:21", with the day where it is not today's. */
export function time(unix) {
  return `${day(unix)} ${clock(unix)}`.trim();
}

/** Whether a server accepts connections, or passes its check: "yes", or what happened instead. */
export function found(word) {
  return word === "unknown" ? "not yet asked" : word;
}

/** Does `text` ("443", "*:443", "20000-20099" or one port of it) name this frontend by its port? As pylb's own verbs read it. */
export function isNamed(frontend, text) {
  if (text === frontend.listen || text === portOf(frontend)) return true;
  const [, port, protocol] = /^([0-9]{1,5})(?:\/([a-z]+))?$/.exec(text) ?? [];
  const last = frontend.last_port || frontend.port;
  return port !== undefined && (protocol ?? "") === (frontend.protocol ?? "") && frontend.port <= port && port <= last;
}

/** A word of a POSIX shell. */
export function quoted(text) {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
