// In which order frontends are listed. Pure.

const SEVERITY = { down: 0, degraded: 1, healthy: 2 };

/** What can be sorted by: how it is called, what is compared, whether the largest comes first, and whether it changes all the time. */
export const ORDERS = {
  trouble: { label: "trouble", of: (one) => SEVERITY[one.health] },
  sessions: { label: "load (sessions)", of: (one) => one.sessions, largest: true, restless: true },
  rate: { label: "new connections", of: (one) => one.rate, largest: true, restless: true },
  in: { label: "traffic in", of: (one) => one.in, largest: true, restless: true },
  out: { label: "traffic out", of: (one) => one.out, largest: true, restless: true },
  port: { label: "port", of: (one) => one.port },
  name: { label: "name", of: (one) => one.name },
};

/** Compares two [key, record] pairs. `reversed`: against the order's own direction. Equal ones are in the order of their ports. */
export function comparing(by, reversed) {
  const { of, largest } = ORDERS[by];
  const sign = Boolean(largest) === Boolean(reversed) ? 1 : -1;
  return ([key, one], [otherKey, other]) =>
    sign * compare(of(one), of(other)) || one.port - other.port || compare(key, otherKey);
}

/** "ascending" or "descending", as aria-sort says it. */
export function direction(by, reversed) {
  return Boolean(ORDERS[by].largest) === Boolean(reversed) ? "ascending" : "descending";
}

function compare(one, other) {
  if (typeof one === "string") return one < other ? -1 : one > other ? 1 : 0;
  return one - other;
}

/** What is in trouble comes first, as [key, record] pairs. */
export function troubled(frontends) {
  return [...frontends].filter(([, one]) => one.health !== "healthy").sort(comparing("trouble", false));
}
