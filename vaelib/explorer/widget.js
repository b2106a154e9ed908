// The explorer in a notebook: z goes to the kernel, the picture's bytes come back; or nothing
// goes there, and a draw from the model's own prior comes back. Some requests are on their way at
// once, so that none waits for the one before it.

const PATIENCE = 5000; // milliseconds

export default {
  render({ model, el }) {
    const waiting = new Map(), view = Math.random(); // one widget may be shown twice
    let number = 0;
    const ask = (content) => new Promise((done, fail) => {
      const request = ++number;
      const timer = setTimeout(() => {
        waiting.delete(request);
        fail(new Error("the kernel is busy, or gone: wait, or restart it and run this cell again"));
      }, PATIENCE);
      waiting.set(request, { done, fail, timer });
      model.send({ number: request, view, ...content });
    });
    const about = model.get("explorer_data"), decode = (z) => ask({ z: Array.from(z) });
    const explorer = mount(el, about, decode, 3, about.prior && (() => ask({})));
    const answered = (answer, buffers) => {
      if (answer.view !== view) return;
      const request = waiting.get(answer.number);
      if (!request) return explorer.refresh(); // it was only busy: ask for the latest position
      waiting.delete(answer.number);
      clearTimeout(request.timer);
      if (answer.error) return request.fail(new Error(answer.error));
      if (answer.z) return request.done(answer.z);
      const { buffer, byteOffset, byteLength } = buffers[0];
      return request.done(new Uint8Array(buffer, byteOffset, byteLength));
    };
    model.on("msg:custom", answered);
    return () => model.off("msg:custom", answered);
  },
};
