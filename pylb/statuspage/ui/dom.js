// The few steps with the document that everything here is made of.

/** An element with attributes (`class`, `data-…`, …; true for one without a value) and children (nodes or text). */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Sets the text if it differs: what stays the same costs no layout and no screen reader. */
export function write(element, text) {
  if (element.firstChild === null || element.childNodes.length > 1 || element.textContent !== text) element.textContent = text;
}

export function flag(element, name, value) {
  if (element.dataset[name] !== value) element.dataset[name] = value;
}

/** Makes `parent` hold exactly these children in this order, and moves only those that are not where they belong. */
export function arrange(parent, children) {
  let at = parent.firstChild;
  for (const child of children) {
    if (child === at) at = at.nextSibling;
    else parent.insertBefore(child, at);
  }
  while (at !== null) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}
