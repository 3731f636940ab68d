"""A policy whose every word is known."""

from support import TALL, WIDE, box

from mgpo.method.boxes import BoxForm
from mgpo.method.prompts import SHOW_AGAIN, SHOW_CROP, ask_region
from mgpo.method.protocol import Protocol
from mgpo.policies.local import TokenPolicy
from mgpo.policies.tokens import TurnTokens
from mgpo.policies.turn_loop import Said
from mgpo.tiny.views import BUDGET

PROTOCOL = Protocol(budget=BUDGET)
GREEDY_BOX = {"q0": WIDE, "q1": TALL}  # the others name no box
RIGHT_AFTER = {"q0": True, "q1": False, "q2": True, "q3": False, "q4": True, "q5": False}
RIGHT_ALONE = {"q0": True, "q1": True, "q2": False, "q3": False, "q4": False, "q5": False}


class Scripted(TokenPolicy):
    """Answers by what it is asked: a greedy or a sampled box, an answer after a look, an answer to one image alone."""

    def __init__(self, processor, questions):
        self.tokens, self.by_text = TurnTokens(processor), {q.question: q for q in questions}
        self.alone, self.batches = {}, []

    def say(self, conversations, max_new_tokens, temperature=0.0):
        self.batches.append((len(conversations), max_new_tokens, temperature))
        return [self._one(c, temperature) for c in conversations]

    def _one(self, conversation, temperature):
        text = self.tokens.tokenizer.decode(conversation.ids)
        question = next(q for known, q in self.by_text.items() if known + "\n" in text)
        right, wrong = f"\\boxed{{{question.answer}}}", "\\boxed{%s}" % ("A" if question.answer != "A" else "B")
        last_user = text.rsplit("<|im_start|>user", 1)[1]
        if ask_region(BoxForm())[:40] in last_user:
            said = self._box(question, temperature)
        elif SHOW_CROP in last_user or SHOW_AGAIN in last_user:
            assert (SHOW_CROP in last_user) == (question.id in GREEDY_BOX)
            said = right if RIGHT_AFTER[question.id] else wrong
        else:
            assert len(conversation.images) == 1 and temperature == 0
            self.alone[question.id] = conversation.images[0]
            said = right if RIGHT_ALONE[question.id] else wrong
        ids = self.tokens.tokenizer(said, add_special_tokens=False)["input_ids"] + [self.tokens.turn_end_id]
        return Said(ids, said, False)

    def _box(self, question, temperature):
        if temperature:  # sampled: q0 hits its gold box (60, 60, 120, 120), q3 misses, the others name none
            return {"q0": box((2, 2, 60, 60)), "q3": box((95, 60, 135, 100))}.get(question.id, "none")
        return box(GREEDY_BOX[question.id]) if question.id in GREEDY_BOX else "none"
