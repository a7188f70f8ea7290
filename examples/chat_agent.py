"""A chat agent that remembers: what its user said before comes back when it matters.

The language model is left out: `reply` shows what one would be given.

    python examples/chat_agent.py
"""

from __future__ import annotations

from memworker import Memory

FIRST_DAY = ["I am allergic to peanuts.", "My sister Ida lives in Oslo.", "I run every morning."]
LATER = ["Can you suggest a snack?", "Where could I go for a family visit?"]


def main() -> None:
    """Tell the agent some things on one day, and ask it on another."""
    with Memory("agent-db") as memory:
        for said in FIRST_DAY:
            # The same sentence said again is not stored twice.
            memory.add(said, user_id="alice", agent_id="chat")
        memory.add("I love peanut butter.", user_id="bob", agent_id="chat")

        for question in LATER:
            # Alice's memories alone: a search always says whose.
            found = memory.search(question, filters={"user_id": "alice"}, limit=2)
            print(reply(question, [each["memory"] for each in found["results"]]), end="\n\n")


def reply(question: str, memories: list[str]) -> str:
    """Write the prompt; put your language model here."""
    known = "\n".join(f"- {memory}" for memory in memories)
    return f"What you know of the user:\n{known}\nThe user asks: {question}"


if __name__ == "__main__":
    main()
