"""The payment service: a payment and the note that its message was handled are one transaction."""

from shop import OrderPlaced, Transaction, inbox, payable, payments, pipe

from eventpipe import Message, Retry


@pipe.consumer(payable, concurrency=10, retry=Retry(attempts=20, delay=0.2, max_delay=5.0))
async def take_payment(event: OrderPlaced, message: Message, session: Transaction) -> None:
    """Take the money, once: a message may come twice, and this process may die at any moment."""
    if await inbox.first(session, message):
        await session.execute(payments.insert().values(order=str(event.order), cents=event.cents))
