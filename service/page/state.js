// State that the parts of the page share, and their events: models, picture, answers, budget, landscape (it is drawn),
// card (with an architecture), trouble (with a problem), back (the server answers again).

export const state = {
  cards: [], // architectures, as GET /models lists them
  served: [], // published models, each with its architecture's `card`
  picture: null, // { blob, name }
  mode: "chosen", // or "budget"
  budget: 0, // milliseconds, of the slider
  answers: [], // to the last question
  asked: null, // blob of the picture that the answers are about
};

const bus = new EventTarget();

export const on = (name, run) => bus.addEventListener(name, (event) => run(event.detail));
export const emit = (name, detail) => bus.dispatchEvent(new CustomEvent(name, { detail }));
