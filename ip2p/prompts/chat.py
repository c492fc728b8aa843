"""The `chat` backend: an instruction-tuned model of transformers, asked through its own chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ip2p.config import PromptsConfig
from ip2p.loading import LanguageModel
from ip2p.prompts.asking import Answer, Message, Request, messages_for, needs_repair, repair_messages
from ip2p.prompts.causal_lm import Prompt, Sampling, continue_prompts


class ChatBackend:
    """Answers independent of the batch; answers that are not as asked are mended together."""

    def __init__(self, config: PromptsConfig, language_model: LanguageModel, sampling: Sampling) -> None:
        """ValueError where the model has no chat template."""
        if not getattr(language_model.tokenizer, "chat_template", None):
            raise ValueError(
                f"prompts.model {config.model} has no chat template. Give an instruction-tuned model, or set "
                "prompts.backend to causal_lm for one that was fine-tuned in the original's format."
            )
        self.config, self.language_model, self.sampling = config, language_model, sampling

    def answer(self, requests: Sequence[Request], *, on_answer: Callable[[int], object]) -> list[Answer]:
        """One answer per request, in order."""
        talks = [messages_for(self.config, request) for request in requests]
        texts = self._continue(requests, talks, 0, on_answer)
        answers = [Answer(text) for text in texts]
        for repair in range(1, self.config.num_repairs + 1):
            self._mend(requests, talks, answers, repair)
        return answers

    def _mend(
        self, requests: Sequence[Request], talks: list[list[Message]], answers: list[Answer], repair: int
    ) -> None:
        """Replaces, in place, the answers that are not as asked."""
        wrong = {
            index: reason for index, each in enumerate(answers) if (reason := needs_repair(self.config, each.text))
        }
        for index, reason in wrong.items():
            talks[index] = repair_messages(talks[index], answers[index].text, reason)
        again = self._continue([requests[i] for i in wrong], [talks[i] for i in wrong], repair, lambda num: None)
        for index, text in zip(wrong, again, strict=True):
            answers[index] = Answer(text, (*answers[index].earlier, answers[index].text))

    def _continue(
        self,
        requests: Sequence[Request],
        talks: Sequence[list[Message]],
        repair: int,
        on_answer: Callable[[int], object],
    ) -> list[str]:
        draws = [(each.caption, each.attempt, *([repair] if repair else [])) for each in requests]
        prompts = [Prompt(self._encode(talk), draw) for talk, draw in zip(talks, draws, strict=True)]
        return continue_prompts(self.language_model, prompts, self.sampling, stop=None, on_answer=on_answer)

    def _encode(self, talk: list[Message]) -> list[int]:
        tokenizer = self.language_model.tokenizer
        text = str(tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False))
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
