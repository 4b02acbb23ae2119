// Editing a message in its place, and the text boxes that grow with what is in them.

import { button, element } from "../dom.js";

/** A form that holds `text`: Enter calls send(text), Escape closes. */
export function editor(text, { send, close }) {
  const area = element("textarea", { "aria-label": "Edit the message", rows: "1" });
  const submit = () => {
    if (!area.value.trim()) return;
    close();
    send(area.value);
  };
  const form = element(
    "form",
    { class: "editor" },
    area,
    element("div", { class: "actions" }, element("button", { class: "main" }, "Send"), button("Cancel", close)),
  );
  area.value = text;
  growing(area);
  onSubmit(form, area, submit);
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  });
  return form;
}

/** Call `submit` for the form's button and for Enter, but not for Shift+Enter or one that ends a composition. */
export function onSubmit(form, area, submit) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  area.addEventListener("keydown", (event) => {
    const composes = event.isComposing || event.keyCode === 229; // 229: Safari's Enter that ends a composition
    if (event.key !== "Enter" || event.shiftKey || composes) return;
    event.preventDefault();
    submit();
  });
}

/** Let a text box be as high as its text; how high at most is up to the style. Returns what measures it again. */
export function growing(area) {
  const grow = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
  };
  area.addEventListener("input", grow);
  requestAnimationFrame(grow);
  return grow;
}
