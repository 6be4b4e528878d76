/** One answer of a model, while it comes and afterwards. */

export class Answer {
  /** @param {object} request - what was sent: `{ body, hasKey }` */
  constructor(request) {
    this.request = request;
    this.text = "";
    /** What the model thought before it answered. */
    this.reasoning = "";
    /** @type {"running" | "complete" | "stopped" | "broken"} */
    this.state = "running";
    this.finishReason = null;
    this.usage = null;
    this.timeToFirstTokenS = null;
    this.tokensPerSecond = null;
  }

  /** Whether there is something to keep. */
  get isAnswered() {
    return this.text !== "" || this.state === "complete";
  }

  /**
   * Take the chunks of the answer; rejects when it does not come to its end.
   * @param {AsyncIterable<object>} chunks
   * @param {() => void} onChange - called for each
   */
  async receive(chunks, onChange) {
    const sentAt = performance.now();
    let firstAt = null;
    let lastAt = null;
    try {
      for await (const chunk of chunks) {
        const choice = chunk.choices[0];
        if (choice) {
          const { content, reasoning_content: reasoning } = choice.delta;
          this.text += content ?? "";
          this.reasoning += reasoning ?? "";
          this.finishReason = choice.finish_reason ?? this.finishReason;
          if (content || reasoning || choice.finish_reason) lastAt = performance.now();
          firstAt ??= lastAt;
        }
        this.usage = chunk.usage ?? this.usage;
        onChange();
      }
      this.state = "complete";
    } catch (error) {
      this.state = error.name === "AbortError" ? "stopped" : "broken";
      throw error;
    } finally {
      if (firstAt !== null) this.timeToFirstTokenS = (firstAt - sentAt) / 1000;
      // The first token's time is the prompt's. A speed over less than a blink says nothing.
      const numIntervals = (this.usage?.completion_tokens ?? 0) - 1;
      const durationS = (lastAt - firstAt) / 1000;
      if (numIntervals > 0 && durationS > 0.05) this.tokensPerSecond = numIntervals / durationS;
    }
  }

  /** Times and tokens, in words. */
  facts() {
    const facts = [];
    if (this.timeToFirstTokenS !== null) {
      facts.push(`${this.timeToFirstTokenS.toFixed(2)} s to the first token`);
    }
    if (this.tokensPerSecond !== null) facts.push(`${formatSpeed(this.tokensPerSecond)} tokens/s`);
    if (this.usage) {
      const { prompt_tokens: prompt, completion_tokens: completion } = this.usage;
      const image = this.usage.prompt_tokens_details?.image_tokens ?? 0;
      const ofImages = image ? `, ${count(image)} of them pictures` : "";
      facts.push(`${count(prompt)} prompt tokens${ofImages}`, `${count(completion)} answer tokens`);
    }
    if (this.finishReason === "length") facts.push("cut off at its longest length");
    if (this.state === "stopped") facts.push("stopped");
    if (this.state === "broken") facts.push("broken off");
    return facts;
  }
}

function count(number) {
  return number.toLocaleString("en");
}

function formatSpeed(tokensPerSecond) {
  return tokensPerSecond < 10 ? tokensPerSecond.toFixed(1) : count(Math.round(tokensPerSecond));
}
