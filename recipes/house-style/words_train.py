"""Everything a training draft is put together from. `<stiff|plain>` is a wording of the draft and its wording in the house style; `<a/b|c>` has two stiff ones.

Slots: {person} {city} {machine} {date} {time} {n} {m} {order} {price} {percent} {phone} are facts; {part} is a common noun.
"""

OPENERS = [
    "Thank you very much for reaching out to us.",
    "We sincerely appreciate your patience in this matter.",
    "We are very sorry for any inconvenience this may have caused.",
    "Thank you for your valued enquiry!",
    "Dear valued customer, we hope that this message finds you well.",
    "We would like to take this opportunity to thank you for your message.",
    "Please accept our apologies for the delay in our reply.",
    "Unfortunately, it has taken us longer than usual to answer you.",
    "Many thanks for your kind letter; it is always a pleasure to hear from you.",
    "We truly value your business and your trust.",
    "First of all, we would like to say how much we appreciate your loyalty!",
    "It was a pleasure to talk to you.",
]
CLOSERS = [
    "Please do not hesitate to contact us should you have any further questions.",
    "We look forward to hearing from you at your earliest convenience.",
    "Kindly let us know if we can be of any further assistance!",
    "We thank you once again for your understanding.",
    "Should you require additional information, please feel free to get in touch.",
    "We sincerely hope that this answers your question.",
    "Thank you for choosing our company!",
    "We remain at your disposal at any time.",
    "We wish you a wonderful day and every success.",
    "Rest assured that your satisfaction is our highest priority.",
    "",
    "",
]
LEADINS = ["We are pleased to inform you that ", "Please be advised that ", "It should be noted that ", "We hereby wish to notify you that ", "Kindly note that ", "We would like to point out that ", "As you may already know, ", "Furthermore, ", "Additionally, "]

UNITS = [
    "the <technician/service engineer|technician> {person} will <commence/initiate|start> work on {date}<, and the repair is anticipated to take approximately|. It takes about> {n} hours.",
    "your order {order} <was dispatched from our warehouse in/has been forwarded from|left> {city} on {date}<, and it is anticipated to arrive within|. It should arrive in> {n} days.",
    "the {part} for the {machine} <is currently not available/cannot currently be furnished|is out of stock now><; we anticipate a delivery upon|. We expect it on> {date}.",
    "the price of the {part} <amounts to a total of/comes to a sum of|is> {price}<, and this includes the cost of the transportation|. Transport is included>.",
    "the warranty of your {machine} <will terminate on/is going to conclude on|ends on> {date}<, therefore we recommend that you purchase|. Buy> an extension <prior to|before> that day.",
    "<you are requested to contact/kindly contact|call> {person} in {city} <in order to ascertain|to ask for> the price<  of the {part}|>.",
    "<it is required that you terminate the operation of/kindly discontinue the use of|stop> the {machine} <immediately|now><, as the {part} does not possess sufficient|. The {part} has not enough> oil.",
    "our team in {city} <conducted an examination of/has carefully examined|checked> the {machine} on {date}<, and subsequently they replaced|. Then they replaced> {n} bolts.",
    "the {part} <must be examined/requires an examination|needs a check> every {n} months<, and the work should be conducted by a person who possesses a certificate|. A certified person does the work>.",
    "<we have been able to locate/we succeeded in locating|we found> the fault in the {part} of your {machine}<, which is the reason why it ceased to operate at|. It stopped at> {time}.",
    "<in the event that/should it happen that|if> the temperature <exceeds/rises beyond|is above> {n} degrees, <kindly cease to operate|stop> the {machine}.",
    "{person} will <provide you with assistance/be happy to assist you|help you> with the {machine}< upon|. That is on> {date} <at approximately|at about> {time}.",
    "the <remainder of the sum/remaining amount|rest> of {price} <is required to be paid|is due> <prior to|before> {date}.",
    "<we require additional documentation regarding|we need more papers on> the {machine}<; kindly transmit these documents to|. Send them to> {person}.",
    "the software of the {machine} <was modified/has been modified by us|was changed> on {date}<, and consequently the start now requires|. The start now takes> {n} seconds.",
    "the meeting with {person} <will commence at/is scheduled to commence at|starts at> {time}< and will conclude after|. It lasts> {n} minutes.",
    "<we were unfortunately unable to ascertain|we do not know> the cause <of the malfunction|of the fault><, however {person} will attempt to examine the|. {person} will check the> {part} on {date}.",
    "the new {part} <demonstrates an improvement of|is better by> {percent} percent<, and furthermore it consumes considerably less|. It also needs less> oil.",
    "<it is possible to purchase/customers are able to purchase|you can buy> the {part} in {city} <for the amount of|for> {price}.",
    "<kindly verify that/we request that you verify that|check that> the {part} of the {machine} is tight<, and subsequently proceed to|. Then> turn the valve {n} times.",
    "the training for the {machine} <is going to be conducted in|is in> {city}<, and it will commence upon|. It starts on> {date}.",
    "<you will be able to obtain|you get> {percent} percent <of a discount|off> <in the event that you purchase|if you buy> {n} or more.",
    "<our telephone hotline is operational|our hotline works> from {time}<, and the number which you should utilise is|. The number is> {phone}.",
    "<the person who is responsible for your case is|your case is with> {person}<, who currently resides in|. The office is in> {city}.",
    "the {machine} <should remain switched off/is required to remain switched off|stays off> for {n} hours<, because the {part} requires sufficient time|. The {part} needs time> to cool.",
    "<we have established that/our examination has demonstrated that|we saw that> the {part} was worn<; consequently it was decided to replace it on|. We replaced it on> {date}.",
    "<we are currently in the process of examining|we are checking> your complaint of {date}<, and {person} will notify you regarding the result|. {person} will tell you the result>.",
    "<the shipment consists of|you get> {n} boxes<, the weight of which amounts to approximately|. They weigh about> {m} kilograms.",
    "<it is not permitted to operate|do not run> the {machine} with <an amount of less than|under> {n} litres of oil.",
    "the bill {order} <was transmitted to/has been forwarded to|went to> {person} on {date}<, however we have not yet received a payment|. We have no payment yet>.",
    "<we would recommend that you utilise|use> the {part} of the {machine} for <a maximum duration of|at most> {n} hours.",
    "the lamp of the {machine} <commences to blink/will start to blink|blinks> after {n} seconds<, which demonstrates that it is operational|. Then it works>.",
    "<please retain the documentation of|keep the papers of> the {machine} for {n} years.",
    "<the delivery is going to be delayed by|the delivery is late by> {n} days<, as the truck was unable to depart from|. The truck did not leave> {city}.",
    "<we have made the decision to furnish you with|you get> a new {part}<, for which no payment is required|. It is free>.",
    "the {machine} <is permitted to carry|may carry> {m} kilograms<, and under no circumstances should this be exceeded|. Never load more>.",
    "<kindly select the programme|choose programme> {n} on the {machine}<, and subsequently proceed to press|. Then press> the green button.",
    "<the number of your request is|your case is> {order}<, and kindly mention it when you contact|. Give it when you call> {person}.",
    "<your invoice regarding the {part} amounts to|the {part} costs> {price}<; in the event that you pay prior to|. If you pay before> {date}<, a deduction of|, you save> {percent} percent<  will be granted|>.",
    "<an attempt was made by {person} to contact you|{person} tried to call you> at {time}<, nevertheless nobody was available|. Nobody answered>.",
]

FIRST = ["Anna", "Tom", "Maria", "Peter", "Lena", "Omar", "Grace", "Hugo", "Nina", "Paul", "Rosa", "Ivan"]
LAST = ["Becker", "Jones", "Silva", "Novak", "Meyer", "Haddad", "Clark", "Lund", "Rossi", "Kim", "Duval", "Petrov"]
CITIES = ["Leeds", "Lyon", "Graz", "Turin", "Porto", "Bremen", "Ghent", "Malmo", "Brno", "Cork"]
MACHINES = ["Halden KX-220", "Torvald 3000", "Brisk M40", "Kestrel 7", "Vantor 580", "Ridgeway Max", "Kobra C12", "Tessaro 90", "Castor Twin", "Duratec 45"]
PARTS = ["pump", "filter", "belt", "motor", "valve", "seal", "sensor", "fan", "gearbox", "hose"]
