// The explorer in a notebook: z goes to the kernel, the picture's bytes come back. Some requests
// are on their way at once, so that none waits for the one before it.

const PATIENCE = 5000; // milliseconds

export default {
  render({ model, el }) {
    const waiting = new Map();
    let number = 0;
    model.on("msg:custom", (answer, buffers) => {
      const request = waiting.get(answer.number);
      if (!request) return;
      waiting.delete(answer.number);
      clearTimeout(request.timer);
      if (answer.error) request.fail(new Error(answer.error));
      else {
        const { buffer, byteOffset, byteLength } = buffers[0];
        request.done(new Uint8Array(buffer, byteOffset, byteLength));
      }
    });
    const decode = (z) => new Promise((done, fail) => {
      const mine = ++number;
      const timer = setTimeout(() => {
        waiting.delete(mine);
        fail(new Error("the kernel does not answer: run this cell again, or restart the kernel"));
      }, PATIENCE);
      waiting.set(mine, { done, fail, timer });
      model.send({ number: mine, z: Array.from(z) });
    });
    mount(el, model.get("about"), decode, 3);
  },
};
