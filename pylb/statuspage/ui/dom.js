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

/**
 * Makes `parent` hold exactly these children in this order. The child with the focus stays where it is and the others
 * move around it, because a moved element loses the focus; of the others only those move that are not in their place.
 */
export function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.childNodes]) if (!wanted.has(child)) child.remove();
  const focused = children.findIndex((child) => child.parentNode === parent && child.contains(document.activeElement));
  place(parent, children.slice(0, Math.max(0, focused)), parent.firstChild, children[focused]);
  place(parent, children.slice(focused + 1), focused < 0 ? parent.firstChild : children[focused].nextSibling);
}

/** `children` in this order from `at` on; `fixed` is a later one that does not move. */
function place(parent, children, at, fixed) {
  for (const child of children) {
    if (child === at) at = at.nextSibling;
    else if (at !== fixed && at?.nextSibling === child) {
      // What is at `at` belongs further down: it moves instead of all that follow it.
      const later = at;
      at = child.nextSibling;
      parent.append(later);
    } else parent.insertBefore(child, at ?? null);
  }
}
