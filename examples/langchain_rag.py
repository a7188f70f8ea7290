"""Questions answered out of documents, with LangChain: retrieve, put into a prompt, ask a model.

The chat model is a stand-in that repeats the passage it was given, so that this runs without a
key.

    pip install "memworker[langchain]"
    python examples/langchain_rag.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from memworker.integrations.langchain import MemworkerEmbeddings, TableVectorStore

NOTES = Path(__file__).parent / "notes"
PROMPT = ChatPromptTemplate.from_template("Answer from this alone:\n{context}\n\n{question}")


def main(question: str = "What pressure do the tyres need?") -> None:
    """Store the notes paragraph by paragraph, and ask."""
    with MemworkerEmbeddings() as embeddings:
        store = TableVectorStore("rag-db", embeddings, table="documents")
        store.add_documents(list(paragraphs()))
        retriever = store.as_retriever(search_kwargs={"k": 1})
        chain = (
            {"context": retriever | joined, "question": RunnablePassthrough()}
            | PROMPT
            | repeat
            | StrOutputParser()
        )
        print(chain.invoke(question))


def repeat(prompt: PromptValue) -> AIMessage:
    """Answer as a chat model does, with what stands in the prompt; put yours here."""
    context = prompt.to_messages()[-1].text.split("\n", 1)[1].rsplit("\n\n", 1)[0]
    return AIMessage(f"The documents say: {context}")


def paragraphs() -> Iterator[Document]:
    """Cut the Markdown notes at empty lines, each paragraph under an id that stays the same."""
    for file in sorted(NOTES.glob("*.md")):
        text = file.read_text().split("---\n", 2)[2]
        for n, paragraph in enumerate(text.strip().split("\n\n")):
            yield Document(paragraph, id=f"{file.name}-{n}", metadata={"source": file.name})


def joined(documents: list[Document]) -> str:
    """Join what was found for the prompt."""
    return "\n".join(f"{each.page_content} ({each.metadata['source']})" for each in documents)


if __name__ == "__main__":
    main()
