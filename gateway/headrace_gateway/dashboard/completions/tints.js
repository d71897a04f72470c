// The colours of tokens. Pure: a tint is a colour of style.css and its strength, between 0 and 1.

const MAX_TINT = 0.62; // strength of a colour behind text, so that the text stays readable
const LOWEST = -6; // log-probability that has the full colour: 1 in 400

const amount = (share) => MAX_TINT * Math.min(1, Math.max(0, share));

// Each colouring: its name, what it shows, what a healthy one looks like, the tint of a token (null: unknown), and the values in
// its legend. `scale` is { oldest, cap }: the age and the weight that have the full colour.
export const WAYS = {
  age: {
    name: "Age",
    goodIs: "Healthy: ages rise towards the beginning of long completions, and no token beyond the bound (struck through) is trained.",
    tint: (token, { oldest }) => (token.age === null ? null : { color: "clay", share: amount(token.age / Math.max(1, oldest)) }),
    legend: ({ oldest }) => steps(oldest).map((age) => [{ age }, age === 1 ? "1 version" : `${age} versions`]),
  },
  weight: {
    name: "Importance weight",
    goodIs: "Healthy: nearly colourless, with weights near 1. Strong colours: the policy differs much from the one that sampled the token.",
    tint: ({ weight }, { cap }) => {
      if (weight === null) return null;
      const side = Math.log(Math.max(weight, 1e-9)) / Math.log(Math.max(cap, 1.01));
      return { color: side > 0 ? "clay" : "water", share: amount(Math.sqrt(Math.abs(side))) };
    },
    legend: ({ cap }) => [[{ weight: 1 / cap }, `${short(1 / cap)} or less`], [{ weight: 1 / Math.sqrt(cap) }, short(1 / Math.sqrt(cap))], [{ weight: 1 }, "1"],
      [{ weight: Math.sqrt(cap) }, short(Math.sqrt(cap))], [{ weight: cap }, `${short(cap)} (cap)`]],
  },
  logprob: {
    name: "Log-probability",
    goodIs: "Healthy: colour at few tokens, where the policy had a choice. Colour everywhere: it guesses; none at all: it no longer explores.",
    tint: ({ logprob }) => (logprob === null ? null : { color: "violet", share: amount(logprob / LOWEST) }),
    legend: () => [0, -1, -3, LOWEST].map((logprob) => [{ logprob }, `${short(logprob)} (${chance(logprob)})`]),
  },
  plain: {
    name: "Plain",
    goodIs: "Healthy: the rewards are those that you would have given.",
    tint: () => ({ color: "clay", share: 0 }),
    legend: () => [],
  },
};

export const WHY = {
  too_old: "older than the bound",
  zero_weight: "its loss weight is 0",
  not_sampled: "the environment's: not sampled",
  no_reward: "its completion has no usable reward",
  greedy: "of the greedy completion, which others are compared with",
};

export const chance = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return share < 0.1 ? "< 0.1 %" : `${share < 10 ? share.toFixed(1) : Math.round(share)} %`;
};

const atMostTwo = (v) => (Math.abs(v) < 1e6 ? Number(v.toFixed(2)).toString() : v.toExponential(2));

export const short = (v) => (v === null || v === undefined ? "–" : atMostTwo(v).replace("-", "−"));

// At most six ages, from 0 to the oldest.
function steps(oldest) {
  const apart = Math.max(1, Math.ceil(oldest / 5));
  const found = [];
  for (let age = 0; age < oldest; age += apart) found.push(age);
  return [...found, oldest];
}
